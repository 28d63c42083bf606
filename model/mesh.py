"""Ranks that draw one image together: a mesh of guidance rows by tensor slices.

A layer never asks for its rank except through the `Group` handed to it. Alone, every operation is
the identity, so one process runs the same lines as sixteen.
"""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

# A rank that hangs for longer than any step ends the worker, which is started again.
TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks that exchange tensors."""

    rank: int = 0
    size: int = 1
    handle: dist.ProcessGroup | None = None
    expert_parallel: bool = False  # routed experts are shared out whole, not each by its width

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum over the ranks, in the dtype of x; x itself may be overwritten."""
        if self.size > 1:
            x = x.contiguous()
            dist.all_reduce(x, group=self.handle)
        return x

    def all_gather(self, x: Tensor, dim: int) -> Tensor:
        """Return the ranks' tensors, which have one shape, side by side along an axis."""
        if self.size == 1:
            return x
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x, group=self.handle)
        return torch.cat(parts, dim=dim)


@dataclass(frozen=True, slots=True)
class Mesh:
    """This process's place: `cfg` splits the guidance rows, `tensor` splits the layers."""

    cfg: Group = Group()
    tensor: Group = Group()
    rank: int = 0
    size: int = 1

    @property
    def whole(self) -> Group:
        """Return all ranks as one group."""
        return Group(self.rank, self.size)

    @property
    def is_first(self) -> bool:
        """Return whether this rank reports; all others draw along."""
        return self.rank == 0

    def all_true(self, policy: bool) -> bool:
        """Return whether every rank votes yes, so that all take the same branch."""
        if self.size == 1:
            return policy
        ballot = torch.tensor([int(policy)], dtype=torch.int32, device=_device())
        dist.all_reduce(ballot, op=dist.ReduceOp.MIN)
        return bool(ballot.item())

    def broadcast_int(self, value: int) -> int:
        """Return rank 0's value on every rank."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.int64, device=_device())
        dist.broadcast(shared, src=0)
        return int(shared.item())


SINGLE = Mesh()


def join_mesh(
    rank: int,
    cfg_size: int,
    tensor_size: int,
    rendezvous: Path,
    device: str,
    expert_parallel: bool = False,
) -> Mesh:
    """Meet the other ranks at a file and return this one's place. Neighbours share tensors.

    `device` tells the transport: NCCL between GPUs, gloo otherwise.
    """
    size = cfg_size * tensor_size
    if size == 1:
        return SINGLE
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(
        backend,
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=size,
        timeout=TIMEOUT,
    )
    cfg_rank, tensor_rank = divmod(rank, tensor_size)
    # Every rank makes every group, in the same order.
    tensor_groups = [
        dist.new_group([c * tensor_size + t for t in range(tensor_size)]) for c in range(cfg_size)
    ]
    cfg_groups = [
        dist.new_group([c * tensor_size + t for c in range(cfg_size)]) for t in range(tensor_size)
    ]
    return Mesh(
        cfg=Group(cfg_rank, cfg_size, cfg_groups[tensor_rank]),
        tensor=Group(tensor_rank, tensor_size, tensor_groups[cfg_rank], expert_parallel),
        rank=rank,
        size=size,
    )


def leave_mesh() -> None:
    """End what join_mesh began, if anything."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
