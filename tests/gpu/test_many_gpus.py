"""Two GPUs generate what one generates. NCCL takes the calls that gloo takes in tests/parallel."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from model.loading.build import load_model
from model.loading.options import LoadOptions
from model.mesh import join_mesh, leave_mesh
from tests.gpu.agreement import (
    BFLOAT16_COSINE,
    FLOAT32_ERROR,
    hidden,
    largest_error,
    smallest_cosine,
)
from tests.gpu.rehearsal import cuda_at_hand, nccl_at_hand

ON_ONE = LoadOptions(device="cuda:0", dtype=torch.float32)
ON_TWO = replace(ON_ONE, layer_devices=("cuda:0", "cuda:1"))


@pytest.fixture(autouse=True)
def _two_gpus() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")


def run_rank(
    rank: int, checkpoint: Path, folder: Path, dtype: torch.dtype, expert_parallel: bool
) -> None:
    with cuda_at_hand(), nccl_at_hand():
        mesh = join_mesh(rank, 1, 2, folder / "rendezvous", f"cuda:{rank}", expert_parallel)
        options = LoadOptions(device=f"cuda:{rank}", dtype=dtype)
        torch.save(hidden(load_model(checkpoint, options, mesh=mesh)), folder / f"{rank}.pt")
        leave_mesh()


def test_layers_on_two_devices_give_the_same_numbers(wide_checkpoint: Path) -> None:
    ours, alone = (hidden(load_model(wide_checkpoint, options)) for options in (ON_TWO, ON_ONE))
    assert largest_error(ours, alone) <= FLOAT32_ERROR


@pytest.mark.parametrize("expert_parallel", [False, True])
def test_two_tensor_ranks_give_the_numbers_of_one(
    wide_checkpoint: Path, tmp_path: Path, expert_parallel: bool
) -> None:
    spawn(run_rank, (wide_checkpoint, tmp_path, torch.float32, expert_parallel), nprocs=2)
    alone = hidden(load_model(wide_checkpoint, ON_ONE))
    for rank in range(2):
        assert largest_error(torch.load(tmp_path / f"{rank}.pt"), alone) <= FLOAT32_ERROR


def test_two_tensor_ranks_in_bfloat16_are_near_one_in_float32(
    unrouted_checkpoint: Path, tmp_path: Path
) -> None:
    spawn(run_rank, (unrouted_checkpoint, tmp_path, torch.bfloat16, False), nprocs=2)
    alone = hidden(load_model(unrouted_checkpoint, ON_ONE))
    for rank in range(2):
        assert smallest_cosine(torch.load(tmp_path / f"{rank}.pt"), alone) >= BFLOAT16_COSINE
