"""NCCL that pretends: ranks of a mesh on pretended devices, alone or exchanging over gloo.

`PretendNccl` is one rank alone: sums leave a tensor as it is and gathers repeat it, as if all ranks
held the same. `GlooNccl` is a rank among processes: its collectives move the real values. Both
refuse what NCCL refuses, a tensor that is not on the rank's own device, and record the calls.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.utils._python_dispatch import _disable_current_modes

from tests.device.pretend_cuda import DeviceMismatchError, bare, current_index, where
from tests.device.pretend_functions import pretended_cuda

REPLACED = (
    "init_process_group", "new_group", "get_backend", "all_reduce", "broadcast", "all_gather",
    "is_initialized",
)  # fmt: skip
REAL: dict[str, Callable[..., Any]] = {name: getattr(dist, name) for name in REPLACED}


@dataclass(frozen=True, slots=True)
class Collective:
    """One call: its kind, the device and dtype of its tensor, and its group."""

    kind: str
    device: str
    dtype: torch.dtype
    group: Any


@dataclass(slots=True)
class PretendNccl:
    """What one rank did with torch.distributed, without other ranks."""

    backend: str = ""
    device_id: Any = None
    device_at_start: int | None = None
    collectives: list[Collective] = field(default_factory=list)

    def is_initialized(self) -> bool:
        return True

    def init_process_group(self, backend: str, device_id: Any = None, **_: Any) -> None:
        self.backend = backend
        self.device_id = device_id
        self.device_at_start = current_index()

    def new_group(self, ranks: Sequence[int], **_: Any) -> Any:
        return tuple(ranks)

    def get_backend(self, group: Any = None) -> str:
        return self.backend

    def all_reduce(self, x: Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None) -> None:
        self.note("all_reduce", x, group)

    def broadcast(self, x: Tensor, src: int = 0, group: Any = None) -> None:
        self.note("broadcast", x, group)

    def all_gather(self, parts: list[Tensor], x: Tensor, group: Any = None) -> None:
        self.note("all_gather", x, group)
        for part in parts:
            part.copy_(x)

    def note(self, kind: str, x: Tensor, group: Any) -> None:
        """Record a call; refuse a tensor on another device than that of the communicator."""
        self.collectives.append(Collective(kind, str(x.device), x.dtype, group))
        if x.device != self.device_id or not bare(x).is_contiguous():
            raise DeviceMismatchError(
                f"NCCL: {kind} of a tensor on {x.device} with strides {x.stride()}, "
                f"the rank has {self.device_id}, at {where()}"
            )


class GlooNccl(PretendNccl):
    """NCCL whose collectives exchange the values between processes, over gloo."""

    def is_initialized(self) -> bool:
        return bool(REAL["is_initialized"]())

    def init_process_group(self, backend: str, device_id: Any = None, **options: Any) -> None:
        super().init_process_group(backend, device_id)
        with _disable_current_modes():
            REAL["init_process_group"]("gloo", **options)

    def new_group(self, ranks: Sequence[int], **_: Any) -> Any:
        with _disable_current_modes():
            return REAL["new_group"](ranks)

    def all_reduce(self, x: Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None) -> None:
        self.note("all_reduce", x, group)
        with _disable_current_modes():
            REAL["all_reduce"](bare(x), op=op, group=group)

    def broadcast(self, x: Tensor, src: int = 0, group: Any = None) -> None:
        self.note("broadcast", x, group)
        with _disable_current_modes():
            REAL["broadcast"](bare(x), src=src, group=group)

    def all_gather(self, parts: list[Tensor], x: Tensor, group: Any = None) -> None:
        self.note("all_gather", x, group)
        with _disable_current_modes():
            REAL["all_gather"]([bare(part) for part in parts], bare(x), group=group)


@contextlib.contextmanager
def pretended_mesh(nccl: PretendNccl | None = None) -> Iterator[PretendNccl]:
    """Replace torch.distributed's collectives for the block."""
    nccl = nccl or PretendNccl()
    with contextlib.ExitStack() as stack:
        for name in REPLACED:
            stack.enter_context(mock.patch.object(dist, name, getattr(nccl, name)))
        yield nccl


def run_pretending_rank(rank: int, run: Callable[..., None], args: tuple[Any, ...]) -> None:
    """Run a function of a rank, which exchanges with the others; it must leave no hazard."""
    torch.set_num_threads(1)
    with pretended_cuda() as cuda, pretended_mesh(GlooNccl()):
        run(rank, *args)
        assert cuda.record.hazards == []


def spawn_pretending(run: Callable[..., None], args: tuple[Any, ...], nprocs: int) -> None:
    """Run a function in a process for each rank, all with a pretending CUDA and one mesh."""
    spawn(run_pretending_rank, args=(run, args), nprocs=nprocs)
