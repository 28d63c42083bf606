"""NCCL that pretends: one rank of a mesh runs alone, and its collectives are recorded.

Sums leave a tensor as it is and gathers repeat it, as if all ranks held the same; what matters is
which device each tensor lies on and which collectives are called.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from tests.device.pretend_cuda import current_index


@dataclass(frozen=True, slots=True)
class Collective:
    """One call: its kind, the device and dtype of its tensor, and the ranks of its group."""

    kind: str
    device: str
    dtype: torch.dtype
    ranks: tuple[int, ...] | None


@dataclass(slots=True)
class PretendMesh:
    """What one rank did with torch.distributed."""

    backend: str = ""
    device_id: Any = None
    device_at_start: int | None = None
    collectives: list[Collective] = field(default_factory=list)

    def init_process_group(self, backend: str, **options: Any) -> None:
        self.backend = backend
        self.device_id = options.get("device_id")
        self.device_at_start = current_index()

    def new_group(self, ranks: Sequence[int], **_: Any) -> tuple[int, ...]:
        return tuple(ranks)

    def get_backend(self, group: Any = None) -> str:
        return self.backend

    def all_reduce(self, x: Tensor, op: Any = None, group: Any = None) -> None:
        self._note("all_reduce", x, group)

    def broadcast(self, x: Tensor, src: int = 0, group: Any = None) -> None:
        self._note("broadcast", x, group)

    def all_gather(self, parts: list[Tensor], x: Tensor, group: Any = None) -> None:
        self._note("all_gather", x, group)
        for part in parts:
            part.copy_(x)

    def _note(self, kind: str, x: Tensor, group: Any) -> None:
        self.collectives.append(Collective(kind, str(x.device), x.dtype, group))


@contextlib.contextmanager
def pretended_mesh() -> Iterator[PretendMesh]:
    """Replace torch.distributed's collectives for the block."""
    mesh = PretendMesh()
    with contextlib.ExitStack() as stack:
        for name in ("init_process_group", "new_group", "get_backend", "all_reduce", "broadcast",
                     "all_gather"):  # fmt: skip
            stack.enter_context(mock.patch.object(dist, name, getattr(mesh, name)))
        stack.enter_context(mock.patch.object(dist, "is_initialized", return_value=True))
        yield mesh
