"""A CUDA that pretends: the product's GPU code path on a machine without one.

A `PretendTensor` claims `cuda:N` and holds its data in ordinary memory, so that real values flow
through sampling, `tolist` and data-dependent shapes. `PretendCuda` refuses what CUDA refuses (mixed
devices, layouts of grouped and scaled products) and records what costs time there: host
synchronisations, pageable copies and kernel launches, each with the line of the product that
caused it. It has no kernels of its own, no races and no allocator.
"""

import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.device.pretend_memory import PretendMemory
from tests.device.pretend_rules import (
    DATA_DEPENDENT,
    GROUPED_FAST,
    HOPPER,
    INDEXING,
    PRODUCTS,
    aten,
    check_grouped,
    is_kernel,
    is_mask,
    is_view,
)

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cli", "tools", "server", "training", "pipeline", "model", "schedulers", "cache")

Products = Mapping[Any, Callable[..., Tensor]]  # of operators whose results differ from a CPU's

current = threading.local()  # the mode in force, and the number of the current device


class DeviceMismatchError(RuntimeError):
    """Tensors of one operation lie on different devices."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at a line of the product."""

    what: str
    where: str

    def __str__(self) -> str:
        return f"{self.what} at {self.where}"


@dataclass(frozen=True, slots=True)
class Attention:
    """A call of scaled_dot_product_attention: the backend that torch chooses, and its shapes."""

    backend: str
    query: tuple[int, ...]
    key: tuple[int, ...]
    where: str


@dataclass(slots=True)
class Record:
    """What happened under a pretending CUDA since the last `clear`.

    `syncs`: the host waits for the device, or a copy from pageable memory holds up the stream.
    `hazards`: results that may be read before they are there. `kernels`: launches by operator.
    """

    syncs: list[Event] = field(default_factory=list)
    hazards: list[Event] = field(default_factory=list)
    kernels: list[Event] = field(default_factory=list)
    attention: list[Attention] = field(default_factory=list)

    def clear(self) -> None:
        for events in (self.syncs, self.hazards, self.kernels, self.attention):
            events.clear()

    def describe_syncs(self) -> str:
        """Return one line for each place that waits, the most frequent first."""
        counts = Counter(map(str, self.syncs)).most_common()
        return "\n".join(f"{count} x {event}" for event, count in counts)


class PretendTensor(Tensor):
    """A tensor that claims a CUDA device; `data_on_cpu` holds its values."""

    data_on_cpu: Tensor

    @staticmethod
    def __new__(cls, data: Tensor, device: torch.device) -> "PretendTensor":
        wrapper: PretendTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            data.size(),
            strides=data.stride(),
            storage_offset=data.storage_offset(),
            dtype=data.dtype,
            layout=data.layout,
            device=device,
            requires_grad=False,
        )
        wrapper.data_on_cpu = data
        active().memory.hold(data, device)
        return wrapper

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PretendTensor({tuple(self.shape)}, {self.dtype}, {self.device})"

    def record_stream(self, stream: Any) -> None: ...

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return active().run(func, args, kwargs or {})


def active() -> "PretendCuda":
    """Return the pretending CUDA in force."""
    mode: PretendCuda | None = getattr(current, "mode", None)
    if mode is None:
        raise RuntimeError("a PretendTensor is used outside of its PretendCuda")
    return mode


def current_index() -> int:
    """Return the number of the current device, as torch.cuda.set_device left it."""
    index: int = getattr(current, "index", 0)
    return index


def full_device(device: Any) -> torch.device:
    """Return a device with its number."""
    named = torch.device(device)
    is_numbered = named.type != "cuda" or named.index is not None
    return named if is_numbered else torch.device("cuda", current_index())


def where() -> str:
    """Return file and line of the product's code that is running."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if (file := product_file(frame.f_code.co_filename)) is not None:
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside of the product"


@cache
def product_file(filename: str) -> str | None:
    """Return a file's path from the root, or None if it is not one of the product's."""
    path = Path(filename)
    if not path.is_relative_to(ROOT) or path.relative_to(ROOT).parts[0] not in PACKAGES:
        return None
    return str(path.relative_to(ROOT))


def bare(value: Any) -> Any:
    """Return the data of a PretendTensor, and anything else as it is."""
    return value.data_on_cpu if isinstance(value, PretendTensor) else value


class PretendCuda(TorchDispatchMode):
    """Runs every operation on the data, after CUDA's rules were checked."""

    # As torch's own fake tensors do: factories with a device then reach this mode.
    _mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __init__(self, capability: tuple[int, int] = HOPPER, products: Products = PRODUCTS) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.capability = capability
        self.record = Record()
        self.memory = PretendMemory()
        self.warns_of_syncs = False
        self._products = products
        self._pinned: set[int] = set()

    def __enter__(self) -> "PretendCuda":
        self._lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(self._lifted)
        super().__exit__(*exception)  # type: ignore[no-untyped-call]

    def sync(self, what: str) -> None:
        self.record.syncs.append(Event(what, where()))
        if self.warns_of_syncs:
            warnings.warn(
                f"called a synchronizing CUDA operation: {what} at {where()}", stacklevel=2
            )

    def hazard(self, what: str) -> None:
        self.record.hazards.append(Event(what, where()))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what an operation returns on CUDA tensors."""
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if func is aten._to_copy.default:
            return self._convert(func, args[0], kwargs)
        if func is aten.copy_.default:
            return self._copy(func, *args, **kwargs)
        device = self._common_device(func, args)
        if kwargs.get("device") is not None:
            wanted = full_device(kwargs["device"])
            device = wanted if wanted.type == "cuda" else None
            kwargs = {**kwargs, "device": wanted if wanted.type == "meta" else torch.device("cpu")}
        is_pinned = bool(kwargs.get("pin_memory"))
        if is_pinned:
            kwargs = {**kwargs, "pin_memory": False}
        bare_args, bare_kwargs = tree_map(bare, (args, kwargs))
        if device is not None:
            self._note_cost(func, bare_args, bare_kwargs)
        compute = func if device is None else self._products.get(func, func)
        result = compute(*bare_args, **bare_kwargs)
        if is_pinned:
            self._pinned |= {t.untyped_storage().data_ptr() for t in tree_leaves(result)}
        return result if device is None else self._wrap(func, result, (args, kwargs), device)

    def pin(self, source: Tensor) -> Tensor:
        """Return a copy in pinned memory."""
        copy = source.clone()
        self._pinned.add(copy.untyped_storage().data_ptr())
        return copy

    def _wrap(self, func: Any, result: Any, given: Any, device: torch.device) -> Any:
        """Return results on the device; what an operation wrote in place is the tensor it got."""
        tensors = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
        wrappers = {id(bare(tensor)): tensor for tensor in tensors}
        # A view is an inference tensor only if its base is one.
        is_inference = torch.is_inference_mode_enabled()
        if is_view(func) and tensors:
            is_inference = tensors[0].is_inference()

        def wrap(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if id(value) in wrappers:
                return wrappers[id(value)]
            with torch.inference_mode(is_inference):
                return PretendTensor(value, device)

        return tree_map(wrap, result)

    def _common_device(self, func: Any, args: tuple[Any, ...]) -> torch.device | None:
        """Return the one CUDA device of the arguments, or None if all lie in ordinary memory."""
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        devices = {t.device for t in tensors if isinstance(t, PretendTensor)}
        if not devices:
            return None
        if len(devices) > 1:
            raise DeviceMismatchError(f"{func}: {sorted(map(str, devices))} at {where()}")
        others = [t for t in tensors if not isinstance(t, PretendTensor) and t.dim()]
        if others and not (func in INDEXING and isinstance(args[0], PretendTensor)):
            shapes = [tuple(t.shape) for t in others]
            raise DeviceMismatchError(f"{func}: {devices.pop()} and cpu {shapes} at {where()}")
        if others:
            self.sync("an index in ordinary memory is copied to the device")
        return next(iter(devices))

    def _convert(self, func: Any, source: Tensor, kwargs: dict[str, Any]) -> Tensor:
        target = full_device(kwargs["device"]) if kwargs.get("device") else source.device
        is_async = bool(kwargs.get("non_blocking"))
        rest = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory")}
        if target.type == "meta":  # what is planned or counted has no data
            return func(bare(source), **rest, device=target)  # type: ignore[no-any-return]
        data: Tensor = func(bare(source), **rest)
        if target.type == "cuda":
            if isinstance(source, PretendTensor):
                self.record.kernels.append(Event(str(func), where()))
            else:
                self._upload(source, is_async)
            return PretendTensor(data, target)
        if isinstance(source, PretendTensor):
            self._download(is_async)
        return data

    def _copy(
        self, func: Any, target: Tensor, source: Tensor, non_blocking: bool = False
    ) -> Tensor:
        func(bare(target), bare(source))
        if isinstance(target, PretendTensor) and not isinstance(source, PretendTensor):
            self._upload(source, non_blocking)
        elif isinstance(source, PretendTensor) and not isinstance(target, PretendTensor):
            self._download(non_blocking)
        else:
            self.record.kernels.append(Event(str(func), where()))
        return target

    def _upload(self, source: Tensor, is_async: bool) -> None:
        is_pinned = source.untyped_storage().data_ptr() in self._pinned
        if not (is_async and is_pinned):
            kind = "pinned" if is_pinned else "pageable"
            self.sync(f"copy of {source.nbytes} bytes from {kind} memory to the device")

    def _download(self, is_async: bool) -> None:
        if is_async:
            self.hazard("copy to ordinary memory that may be read before it has arrived")
        else:
            self.sync("copy to ordinary memory")

    def _note_cost(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record whether an operation waits, and that it launches a kernel; check its layout."""
        if func is aten._local_scalar_dense.default:
            self.sync("item")
            return
        if func in DATA_DEPENDENT:
            self.sync(f"{func.overloadpacket.__name__}: a shape that depends on the data")
        elif func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
            self.sync("repeat_interleave without output_size")
        elif func is aten.index.Tensor and any(is_mask(index) for index in args[1]):
            self.sync("index by a mask")
        elif func is aten._grouped_mm.default:
            check_grouped(args[0], args[1], kwargs.get("offs", args[2] if len(args) > 2 else None))
            if args[0].dtype != torch.bfloat16 or self.capability not in GROUPED_FAST:
                self.sync("grouped_mm without its fast kernel: offsets on the host, a loop of mm")
        if is_kernel(func):
            self.record.kernels.append(Event(str(func), where()))
