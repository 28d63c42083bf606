"""Tensor parallel and expert parallel shards of checkpoint tensors: functions on names and shapes.

Attention is split by key/value head, the shared expert by width, routed experts by width or one by
one, the vocabulary by rows if the ranks divide it. Norms, router, patch layers, head and VAE are
whole on every rank.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import ModelConfig
from model.errors import ConfigError
from model.mesh import RankGroup, splits_vocabulary

_VOCABULARY = re.compile(r"model\.wte\.weight|lm_head\.weight")
_ROWS = re.compile(r".*\.self_attn\.qkv_proj\.weight(_scale)?")
_PAIRED_ROWS = re.compile(r".*\.mlp\..*gate_and_up_proj\.weight(_scale)?")
_COLUMNS = re.compile(r".*\.(self_attn\.o_proj|mlp\..*down_proj)\.weight(_scale)?")


@dataclass(frozen=True, slots=True)
class ShardSlice:
    """Rows or columns [start, stop) of a stored matrix, for each of `starts`, one below another.

    `dim` is the axis that is cut; a fused [up; gate] is cut in both halves.
    """

    dim: int
    starts: tuple[int, ...]
    length: int

    def shape(self, whole: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the shard."""
        shape = list(whole)
        shape[self.dim] = self.length * len(self.starts)
        return tuple(shape)

    def of(self, matrix: Tensor) -> Tensor:
        """Return the shard of a matrix in memory."""
        parts = [matrix.narrow(self.dim, start, self.length) for start in self.starts]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=self.dim)

    def row_runs(self, whole: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Yield (offset, count) of the neighbouring stored elements of a shard of rows."""
        assert self.dim == 0, "a shard of columns has no long runs"
        columns = whole[1]
        for start in self.starts:
            yield start * columns, self.length * columns


def plan_shard_slice(name: str, shape: Sequence[int], rank: int, size: int) -> ShardSlice | None:
    """Return the shard of a checkpoint tensor that a rank holds, or None for all of it.

    Raises:
        ConfigError: the columns that share a scale would lie on two ranks.
    """
    if size == 1:
        return None
    if _VOCABULARY.fullmatch(name) and not splits_vocabulary(shape[0], size):
        return None
    if _ROWS.fullmatch(name) or _VOCABULARY.fullmatch(name):
        length = shape[0] // size
        return ShardSlice(0, (rank * length,), length)
    if _PAIRED_ROWS.fullmatch(name):
        half = shape[0] // 2
        length = half // size
        return ShardSlice(0, (rank * length, half + rank * length), length)
    if _COLUMNS.fullmatch(name):
        length = shape[1] // size
        if name.endswith("_scale") and shape[1] == 1:
            return None  # one scale for the whole row, which every rank needs
        if length * size != shape[1]:
            raise ConfigError(
                f"{name} has {shape[1]} columns, which {size} tensor ranks do not divide; "
                "lower worker.tensor_parallel_size, or quantize the original weights at load"
            )
        return ShardSlice(1, (rank * length,), length)
    return None


def local_expert(expert: int, num_experts: int, ranks: RankGroup) -> int | None:
    """Return an expert's index on an expert parallel rank, or None if another rank holds it."""
    count = num_experts // ranks.size
    index = expert - ranks.rank * count
    return index if 0 <= index < count else None


def check_divisible(config: ModelConfig, size: int, expert_parallel: bool = False) -> None:
    """Check that a model can be split over so many ranks.

    Raises:
        ConfigError: naming the first number that so many ranks do not divide.
    """
    numbers = {
        "num_key_value_heads": config.num_kv_heads,
        "moe_intermediate_size": min(layer.expert_width for layer in config.layers),
    }
    if expert_parallel:
        numbers["num_experts"] = min(layer.num_experts for layer in config.layers)
    for name, value in numbers.items():
        if value % size:
            divisors = [n for n in range(1, config.num_kv_heads + 1) if not config.num_kv_heads % n]
            raise ConfigError(
                f"{name} is {value}, which {size} tensor ranks do not divide; "
                "worker.tensor_parallel_size may be "
                f"{' or '.join(map(str, divisors))} for this checkpoint"
            )
