"""Device mesh of the ranks that generate one image: CFG parallel x tensor or expert parallel.

CFG parallel: two ranks run the conditional and the unconditional row. Tensor parallel: ranks hold
slices of every layer. Expert parallel: the routed experts are whole and shared out over the tensor
ranks instead. A layer reads its rank from the `RankGroup` passed to it and nowhere else. In a
group of one every operation is the identity, so one process runs the same lines as sixteen.
"""

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

# A rank that hangs in a collective ends the worker, which is then started again. Longer than any
# step, and on CUDA than the differences between ranks that compile their first kernels.
TIMEOUT = timedelta(minutes=10)
CUDA_TIMEOUT = timedelta(minutes=3)


@dataclass(frozen=True, slots=True)
class RankGroup:
    """Ranks that exchange tensors: all-reduce and all-gather, the identity for a single rank."""

    rank: int = 0
    size: int = 1
    handle: dist.ProcessGroup | None = None
    expert_parallel: bool = False  # a rank holds some routed experts whole, not a slice of each

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
        gathered = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(gathered, x, group=self.handle)
        return torch.cat(gathered, dim=dim)


@dataclass(frozen=True, slots=True)
class Mesh:
    """The groups of this rank: `cfg` splits the guidance rows, `tensor` splits the layers."""

    cfg: RankGroup = RankGroup()
    tensor: RankGroup = RankGroup()
    rank: int = 0
    size: int = 1
    device: torch.device = field(default=torch.device("cpu"))  # of the ranks' votes

    @property
    def whole(self) -> RankGroup:
        """Return all ranks as one group."""
        return RankGroup(self.rank, self.size)

    @property
    def is_first(self) -> bool:
        """Return whether this is the rank that reports results."""
        return self.rank == 0

    def all_true(self, value: bool) -> bool:
        """Return whether the value is true on every rank, so that all take the same branch."""
        if self.size == 1:
            return value
        shared = torch.tensor([int(value)], dtype=torch.int32, device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MIN)
        return bool(shared.item())

    def broadcast_int(self, value: int) -> int:
        """Return rank 0's value on every rank."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.int64, device=self.device)
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
    """Join the process group at the rendezvous file and return this rank's mesh.

    Neighbouring ranks form a tensor group. `device` decides the backend: NCCL between GPUs, gloo
    otherwise.
    """
    size = cfg_size * tensor_size
    if size == 1:
        return SINGLE
    is_cuda = device.startswith("cuda")
    rank_device = torch.device("cuda", rank) if is_cuda else torch.device("cpu")
    if is_cuda:  # before any collective: a communicator takes the current device
        torch.cuda.set_device(rank_device)
    dist.init_process_group(
        "nccl" if is_cuda else "gloo",
        device_id=rank_device if is_cuda else None,
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=size,
        timeout=CUDA_TIMEOUT if is_cuda else TIMEOUT,
    )
    cfg_rank, tensor_rank = divmod(rank, tensor_size)
    # Every rank has to create every group, in the same order.
    tensor_groups = [
        dist.new_group([c * tensor_size + t for t in range(tensor_size)]) for c in range(cfg_size)
    ]
    cfg_groups = [
        dist.new_group([c * tensor_size + t for c in range(cfg_size)]) for t in range(tensor_size)
    ]
    return Mesh(
        cfg=RankGroup(cfg_rank, cfg_size, cfg_groups[tensor_rank]),
        tensor=RankGroup(tensor_rank, tensor_size, tensor_groups[cfg_rank], expert_parallel),
        rank=rank,
        size=size,
        device=rank_device,
    )


def splits_vocabulary(vocab_size: int, size: int) -> bool:
    """Return whether tensor ranks split the vocabulary; one that they do not divide stays whole."""
    return vocab_size % size == 0


def leave_mesh() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
