"""Kernels, bytes and operations of a denoising step, counted on the meta device.

The product's own code runs on shapes alone, and each operation is priced by the stated rates of a
card: a product by its multiplications, everything else by the bytes it reads and writes, and
nothing below the time of a launch. The result is counted, not measured; it leaves out whatever a
kernel wastes inside. `hyimage plan` takes its seconds from here, and a test holds the number of
kernels to a budget.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.fused import FusedKernel
from model.planning.cards import Card
from model.planning.meta_step import silent_all_gather, silent_all_reduce
from model.planning.product_line import product_line

aten = torch.ops.aten

EXCHANGES = ("all_reduce", "all_gather")
LAUNCH_S = 2.5e-6  # the least time of a kernel in a full queue
TOPK_ROW_S = 1e-8


@dataclass(frozen=True, slots=True)
class Kernel:
    """One operation: its name, the line that caused it, what it moves and computes.

    It is one launch, but for grouped products that are multiplied expert by expert. `least_s` is
    the time of its multiplications at the peak of the card's units.
    """

    name: str
    where: str
    bytes_moved: int
    flops: int
    seconds: float
    launches: int = 1
    least_s: float = 0.0


@dataclass(slots=True)
class StepCost:
    """The launches of a stretch of code, in order."""

    kernels: list[Kernel] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return math.fsum(kernel.seconds for kernel in self.kernels)

    @property
    def num_kernels(self) -> int:
        return sum(kernel.launches for kernel in self.kernels)

    @property
    def least_s(self) -> float:
        return math.fsum(kernel.least_s for kernel in self.kernels)

    @property
    def bytes_exchanged(self) -> int:
        return sum(kernel.bytes_moved for kernel in self.kernels if kernel.name in EXCHANGES)

    @property
    def bytes_moved(self) -> int:
        return sum(kernel.bytes_moved for kernel in self.kernels)

    @property
    def flops(self) -> int:
        return sum(kernel.flops for kernel in self.kernels)


@contextmanager
def count_cost(
    card: Card, share_of_rows: float = 1.0, is_compiled: bool = True
) -> Iterator[StepCost]:
    """Count the launches of the block, which runs on meta tensors.

    `share_of_rows` is the part of the experts' rows that belongs to this rank's experts. What is
    not compiled launches a kernel for every operation of a fused function, under its name.
    """
    cost = StepCost()
    counter = _Counter(card, cost, share_of_rows, is_compiled)
    with counter, _Functions(counter, is_compiled):
        yield cost


class _Counter(TorchDispatchMode):
    """Adds a kernel for every operation that is neither a view nor an allocation."""

    def __init__(self, card: Card, cost: StepCost, share_of_rows: float, is_compiled: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.card = card
        self._cost = cost
        self._share_of_rows = share_of_rows
        self._is_compiled = is_compiled
        self._is_paused = False
        self._function = ""

    def add(self, name: str, bytes_moved: int, *, floor_s: float = LAUNCH_S) -> None:
        """Add a kernel whose time is that of the bytes it moves."""
        name = self._function or name
        seconds = max(bytes_moved / self.card.bandwidth, floor_s)
        self._cost.kernels.append(Kernel(name, product_line(), bytes_moved, 0, seconds))

    def add_product(
        self, name: str, bytes_moved: int, flops: int, rate: float, *, launches: int = 1
    ) -> None:
        """Add a kernel that multiplies, at a rate that its units reach."""
        seconds = max(flops / rate, bytes_moved / self.card.bandwidth, launches * LAUNCH_S)
        peak = self.card.peak * (2 if name.startswith("_scaled") else 1)
        kernel = Kernel(name, product_line(), bytes_moved, flops, seconds, launches, flops / peak)
        self._cost.kernels.append(kernel)

    def add_all_reduce(self, num_bytes: int, size: int) -> None:
        """Add a sum over the ranks, by a ring: each byte passes twice."""
        seconds = self.card.link_latency_s + 2 * num_bytes * (size - 1) / size / self.card.link
        self._cost.kernels.append(Kernel("all_reduce", product_line(), num_bytes, 0, seconds))

    def add_all_gather(self, num_bytes: int, size: int) -> None:
        """Add a gather of tensors of this size from every rank."""
        seconds = self.card.link_latency_s + num_bytes * (size - 1) / self.card.link
        self._cost.kernels.append(
            Kernel("all_gather", product_line(), num_bytes * size, 0, seconds)
        )

    @contextmanager
    def paused(self) -> Iterator[None]:
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    @contextmanager
    def inside(self, function: str) -> Iterator[None]:
        """Add the block's operations under the name of a function."""
        self._function = function
        try:
            yield
        finally:
            self._function = ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self._is_paused and not _is_free(func):
            self._add_operation(func, list(_tensors((args, kwargs))), list(_tensors(out)))
        return out

    def _add_operation(self, func: Any, given: list[Tensor], made: list[Tensor]) -> None:
        name = func.overloadpacket.__name__
        if not self._add_product(name, given, made):
            self._add_movement(name, given, made)

    def _add_product(self, name: str, given: list[Tensor], made: list[Tensor]) -> bool:
        """Add an operation if it is a matrix product or a convolution; return whether it is."""
        card, moved = self.card, _bytes_moved(given, made)
        if name in ("mm", "addmm", "bmm"):
            a, b = given[-2:]
            rate = card.matmul_float32 if a.dtype == torch.float32 else card.matmul
            self.add_product(name, moved, 2 * a.numel() * b.shape[-1], rate)
        elif name == "_grouped_mm" or name.startswith("_scaled_grouped_mm"):
            rate = card.grouped if name == "_grouped_mm" else _rate_of(card, card.grouped_fp8, name)
            flops = int(2 * given[0].numel() * given[1].shape[-1] * self._share_of_rows)
            # Where torch has no kernel, the Triton one needs the compiler that fuses, too.
            is_one = card.has_grouped_kernel or self._is_compiled
            launches = 1 if is_one else given[1].shape[0]
            self.add_product(name, moved, flops, rate, launches=launches)
        elif name == "_scaled_mm":
            flops = 2 * given[0].numel() * given[1].shape[-1]
            self.add_product(name, moved, flops, _rate_of(card, card.fp8, name))
        elif name == "convolution":
            flops = 2 * made[0].numel() * given[1][0].numel()
            self.add_product(name, moved, flops, card.convolution)
        else:
            return False
        return True

    def _add_movement(self, name: str, given: list[Tensor], made: list[Tensor]) -> None:
        """Add an operation whose time is that of the bytes it moves, or of its passes."""
        moved = _bytes_moved(given, made)
        if name in ("index", "index_select", "embedding"):  # reads the rows it returns
            moved = 2 * made[0].nbytes + sum(t.nbytes for t in given[1:])
        elif name in ("_embedding_bag_forward_only", "_embedding_bag"):
            row_bytes = given[0].shape[1] * given[0].element_size()
            moved = given[1].numel() * row_bytes + made[0].nbytes + given[1].nbytes
        elif name in ("cat", "clone", "stack", "contiguous"):
            moved = 2 * sum(t.nbytes for t in made)
        self.add(name, moved, floor_s=_least_seconds(name, given, made))


def _rate_of(card: Card, rate: float | None, name: str) -> float:
    assert rate is not None, f"{card.name} has no {name}, and yet the model calls it"
    return rate


def _least_seconds(name: str, given: list[Tensor], made: list[Tensor]) -> float:
    if name == "sort":  # radix: three short kernels for each byte of a key, counted as one
        return 3 * given[0].element_size() * LAUNCH_S
    if name == "topk":  # a block of threads for each row
        return max(LAUNCH_S, made[0].shape[0] * TOPK_ROW_S)
    return LAUNCH_S


def _bytes_moved(given: list[Tensor], made: list[Tensor]) -> int:
    return sum(t.nbytes for t in given) + sum(t.nbytes for t in made)


class _Functions(TorchFunctionMode):
    """Sees what is one kernel as one: fused functions, attention, norms; and the ranks' sums."""

    def __init__(self, counter: _Counter, is_compiled: bool) -> None:
        super().__init__()
        self._counter = counter
        self._is_compiled = is_compiled

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, FusedKernel) and not self._is_compiled:
            with self._counter.inside(func.name), self:
                return func.eager(*args, **kwargs)
        if isinstance(func, FusedKernel):
            with self._counter.paused():
                out = func.eager(*args, **kwargs)
            moved = sum(t.nbytes for t in _tensors((args, kwargs, out)))
            self._counter.add(func.name, moved)
            return out
        if func is F.rms_norm:
            with self._counter.paused():
                out = func(*args, **kwargs)
            self._counter.add("rms_norm", sum(t.nbytes for t in _tensors((args, kwargs, out))))
            return out
        if func is F.scaled_dot_product_attention:
            q, k, v = args[:3]
            # The fused kernel's own shapes: alone, meta tensors go the long way, with scores.
            with self._counter.paused():
                out = torch.empty_like(q)
            flops = 4 * q.numel() * k.shape[2]
            moved = 2 * q.nbytes + k.nbytes + v.nbytes
            self._counter.add_product("attention", moved, flops, self._counter.card.attention)
            return out
        if func is silent_all_reduce:
            x, size = args
            self._counter.add_all_reduce(x.nbytes, size)
            return x
        if func is silent_all_gather:
            x, size, dim = args
            self._counter.add_all_gather(x.nbytes, size)
            return torch.cat([x] * size, dim=dim)
        return func(*args, **kwargs)


_ALLOCATIONS = {
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
    aten.detach.default,
    aten._unsafe_view.default,
}


@cache
def _is_free(func: Any) -> bool:
    """Return whether an operation launches nothing: views and allocations do not."""
    returned = func._schema.returns
    is_view = bool(returned) and all(
        r.alias_info is not None and not r.alias_info.is_write for r in returned
    )
    return is_view or func in _ALLOCATIONS


def _tensors(values: Any) -> Iterable[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
