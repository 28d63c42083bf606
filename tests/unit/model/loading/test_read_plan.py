"""How few read calls a rank needs, and that what they read is its part."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.loading.read_plan import SHORT_RUN_BYTES, plan_pieces
from model.loading.safetensors_file import SafetensorsFile
from model.loading.shard_plan import ShardSlice, plan_shard_slice
from model.loading.tensor_reader import ReadBuffer, read_tensor
from model.loading.weight_map import ParameterSlot

# Source: config.json of HunyuanImage-3.0: hidden_size, moe_intermediate_size, layers, experts.
WIDTH, EXPERT_WIDTH, LAYERS, EXPERTS = 4096, 3072, 32, 64
ITEMSIZE = 2


def test_a_rank_reads_the_real_experts_in_one_call_each() -> None:
    """Row by row these were 8.4 million calls."""
    shape = (WIDTH, EXPERT_WIDTH)
    shard = plan_shard_slice("model.layers.0.mlp.experts.0.down_proj.weight", shape, 1, 4)
    pieces = list(plan_pieces(shape, shard, ITEMSIZE))
    calls = sum(len(piece.runs) for piece in pieces)
    assert calls == 1
    assert sum(piece.num_read for piece in pieces) == WIDTH * EXPERT_WIDTH
    assert WIDTH * LAYERS * EXPERTS == 8_388_608


class CountedReads:
    """A read call that counts."""

    def __init__(self) -> None:
        self.calls = self.bytes = 0

    def __call__(self, file: int, memory: list[memoryview], offset: int) -> int:
        self.calls += 1
        count = os.preadv(file, memory, offset)
        self.bytes += count
        return count


WIDE = 4 * SHORT_RUN_BYTES // ITEMSIZE
CASES = {
    # shape, shard, read calls, share of the stored bytes that is read
    "whole": ((64, 96), None, 1, 1.0),
    "rows": ((64, 96), ShardSlice(0, (16,), 16), 1, 0.25),
    "two groups of rows": ((64, 96), ShardSlice(0, (8, 40), 8), 2, 0.25),
    "short columns": ((64, 96), ShardSlice(1, (24,), 24), 1, 1.0),
    "long columns": ((6, WIDE), ShardSlice(1, (WIDE // 2,), WIDE // 2), 6, 0.5),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("case", list(CASES))
def test_a_part_is_read_with_few_calls(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    shape, shard, calls, share = CASES[case]
    whole = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({"w": whole}, tmp_path / "w.safetensors")
    slot = ParameterSlot("w", None, shape, shard)
    values = torch.empty(slot.local_shape, dtype=dtype)
    reads = CountedReads()
    with SafetensorsFile(tmp_path / "w.safetensors", reads) as file:
        read_tensor(file, file.tensors[0], slot.shard, values, ReadBuffer())
    assert reads.calls == calls
    assert reads.bytes == share * whole.nbytes
    expected = whole
    if shard is not None:
        parts = [whole.narrow(shard.dim, start, shard.length) for start in shard.starts]
        expected = torch.cat(parts, dim=shard.dim)
    assert torch.equal(values, expected.to(dtype))


@pytest.mark.parametrize("case", list(CASES))
def test_pieces_keep_to_the_memory_they_may_take_and_fill_the_part_once(case: str) -> None:
    shape, shard, _, _ = CASES[case]
    most = 3 * WIDE if case == "long columns" else 1000
    whole = torch.arange(shape[0] * shape[1]).view(shape)
    slot = ParameterSlot("w", None, shape, shard)
    filled = torch.full(slot.local_shape, -1).view(-1)
    for piece in plan_pieces(shape, shard, ITEMSIZE, max_bytes=most):
        assert piece.num_read * ITEMSIZE <= most
        read = torch.cat([whole.view(-1)[start : start + n] for start, n in piece.runs])
        kept = read.unflatten(0, (piece.rows, -1))[:, piece.first : piece.last]
        target = filled[piece.start : piece.start + piece.num_kept]
        assert (target == -1).all()
        target.copy_(kept.flatten())
    parts = [whole] if shard is None else [
        whole.narrow(shard.dim, start, shard.length) for start in shard.starts
    ]  # fmt: skip
    assert torch.equal(filled, torch.cat(parts, dim=0 if shard is None else shard.dim).view(-1))
