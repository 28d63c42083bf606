"""Functions of torch that a build without CUDA refuses before dispatch: attention, indexing, items.

`pretended_cuda` puts them, streams and device queries in place together with `PretendCuda`.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from tests.device.pretend_cuda import (
    Attention,
    DeviceMismatchError,
    Event,
    PretendCuda,
    PretendTensor,
    Products,
    active,
    bare,
    current,
    full_device,
    where,
)
from tests.device.pretend_rules import HOPPER, PRODUCTS, aten, is_mask

MAX_FLASH_WIDTH = 256
MAX_CUDNN_WIDTH = 128
DEVICE_COUNT = 4
DEVICE_BYTES = 80 * 2**30


class PretendFunctions(TorchFunctionMode):
    """Takes the calls that must not reach torch's own code for CUDA tensors."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, PretendTensor):
            if func is F.scaled_dot_product_attention:
                return attend(*args, **kwargs)
            if func is F.multi_head_attention_forward:
                # torch leaves this mode while it handles a call, and what is inside needs it too.
                with self, mock.patch.object(F, "has_torch_function", return_value=False):
                    return func(*args, **kwargs)
            handler = HANDLERS.get(getattr(func, "__name__", ""))
            if handler is not None and not isinstance(func, torch._ops.OpOverload):
                return handler(*args, **kwargs)
        elif func is Tensor.pin_memory and isinstance(first, Tensor):
            return active().pin(first)
        elif func is Tensor.__getitem__ and isinstance(first, Tensor):
            indices = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(index, PretendTensor) for index in indices):
                raise DeviceMismatchError(f"a tensor on cpu indexed by one on cuda at {where()}")
        return func(*args, **kwargs)


def choose_backend(q: Tensor, mask: Tensor | None) -> str:
    """Return the backend of attention that torch chooses on a Hopper device.

    Source: torch 2.13, aten/src/ATen/native/transformers/cuda/sdp_utils.cpp: cuDNN first.
    """
    is_half, width = q.dtype in (torch.bfloat16, torch.float16), q.shape[-1]
    fits_cudnn = is_half and width <= MAX_CUDNN_WIDTH and not width % 8
    if fits_cudnn and torch.backends.cuda.cudnn_sdp_enabled():
        return "cudnn"
    fits_flash = is_half and mask is None and width <= MAX_FLASH_WIDTH
    if fits_flash and torch.backends.cuda.flash_sdp_enabled():
        return "flash"
    return "efficient" if torch.backends.cuda.mem_efficient_sdp_enabled() else "math"


def attend(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """Return attention computed on the data; record the backend that CUDA would choose."""
    tensors = [t for t in (q, k, v, attn_mask) if t is not None]
    if len({t.device for t in tensors}) > 1:
        raise DeviceMismatchError(f"attention over {[str(t.device) for t in tensors]} at {where()}")
    backend = choose_backend(q, attn_mask)
    record = active().record
    record.attention.append(Attention(backend, tuple(q.shape), tuple(k.shape), where()))
    record.kernels.append(Event(f"attention.{backend}", where()))
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        out = F.scaled_dot_product_attention(
            bare(q), bare(k), bare(v), bare(attn_mask), *args, **kwargs
        )
    return PretendTensor(out, q.device)


def split_index(x: Tensor, index: Any) -> tuple[Tensor, list[Tensor | None]]:
    """Return a view by the integers, slices and None of an index, and its tensors by axis."""
    parts = index if isinstance(index, tuple) else (index,)
    num_axes = sum(
        part.dim() if is_mask(part) else 1
        for part in (p if isinstance(p, Tensor) else None for p in parts)
        if part is not None
    ) + sum(part is not None and part is not Ellipsis and not isinstance(part, Tensor)
            for part in parts)  # fmt: skip
    axis, tensors = 0, dict[int, Tensor]()
    for part in parts:
        if part is Ellipsis:
            axis += x.dim() - num_axes
        elif part is None:
            x = aten.unsqueeze.default(x, axis)
            axis += 1
        elif isinstance(part, int):
            x = aten.select.int(x, axis, part)
        elif isinstance(part, slice):
            if part != slice(None):
                x = aten.slice.Tensor(x, axis, part.start, part.stop, part.step or 1)
            axis += 1
        else:
            if not isinstance(part, Tensor):
                active().sync("an index from a list is copied to the device")
                part = PretendTensor(torch.tensor(list(part)), x.device)
            tensors[axis] = part
            axis += part.dim() if is_mask(part) else 1
    return x, [tensors.get(i) for i in range(max(tensors, default=-1) + 1)]


def get_item(x: Tensor, index: Any) -> Tensor:
    view, tensors = split_index(x, index)
    if tensors:
        return aten.index.Tensor(view, tensors)  # type: ignore[no-any-return]
    return aten.alias.default(x) if view is x else view


def set_item(x: Tensor, index: Any, value: Any) -> None:
    view, tensors = split_index(x, index)
    if not isinstance(value, Tensor):
        if not tensors:
            aten.fill_.Scalar(view, value)
            return
        value = torch.full((), value, dtype=x.dtype, device=x.device)
    if tensors:
        aten.index_put_.default(view, tensors, value)
    else:
        active().run(aten.copy_.default, (view, value.expand(view.shape)), {})


def to_list(x: PretendTensor) -> Any:
    active().sync("tolist")
    return x.data_on_cpu.tolist()


def to_scalar(convert: Callable[[Any], Any]) -> Callable[[PretendTensor], Any]:
    def read(x: PretendTensor) -> Any:
        active().sync("item")
        return convert(x.data_on_cpu.item())

    return read


def to_contiguous(
    x: Tensor, memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    if bare(x).is_contiguous(memory_format=memory_format):
        return x
    return aten.clone.default(x, memory_format=memory_format)  # type: ignore[no-any-return]


def copy_in_place(x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    copied: Tensor = active().run(aten.copy_.default, (x, source, non_blocking), {})
    return copied


HANDLERS: dict[str, Callable[..., Any]] = {
    "__getitem__": get_item,
    "__setitem__": set_item,
    "__float__": to_scalar(float),
    "__int__": to_scalar(int),
    "__bool__": to_scalar(bool),
    "__index__": to_scalar(int),
    "item": to_scalar(lambda value: value),
    "tolist": to_list,
    "contiguous": to_contiguous,
    "copy_": copy_in_place,
}


class PretendStream:
    """A stream on which everything has happened already."""

    cuda_stream = 0

    def __init__(self, device: Any = None, *_: Any, **__: Any) -> None:
        self.device = device

    def wait_stream(self, other: "PretendStream") -> None: ...

    def record_event(self, event: Any = None) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def synchronize(self) -> None:
        active().sync("synchronize")


class PretendEvent:
    """An event that has happened already.

    To wait for one is no sync of the device: it waits for the copies before it on one stream.
    """

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None: ...


def submit_inline(
    pool: ThreadPoolExecutor, call: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> "Future[Any]":
    """Run a call of a thread pool at once: torch's modes belong to one thread."""
    future: Future[Any] = Future()
    try:
        future.set_result(call(*args, **kwargs))
    except Exception as e:  # noqa: BLE001 -- a future holds whatever was raised
        future.set_exception(e)
    return future


def index_of(device: Any = None) -> int:
    """Return the number of a device as torch.cuda's functions take it; None is the current one."""
    if isinstance(device, int):
        return device
    index: int = full_device("cuda" if device is None else device).index
    return index


def set_sync_debug_mode(mode: str) -> None:
    """Warn of every sync from now on, or of none; torch warns of the mode itself, too."""
    warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=2)
    active().warns_of_syncs = mode == "warn"


def set_device(device: Any) -> None:
    current.index = index_of(device)


CUDA_FUNCTIONS: dict[str, Any] = {
    "Stream": PretendStream,
    "default_stream": lambda device=None: PretendStream(device),
    "Event": PretendEvent,
    "current_stream": lambda device=None: PretendStream(device),
    "stream": lambda stream: contextlib.nullcontext(),
    "set_stream": lambda stream: None,
    "get_device_capability": lambda device=None: active().capability,
    "set_device": set_device,
    "current_device": lambda: getattr(current, "index", 0),
    "device_count": lambda: DEVICE_COUNT,
    "synchronize": lambda device=None: active().sync("synchronize"),
    "set_sync_debug_mode": set_sync_debug_mode,
    "memory_allocated": lambda device=None: active().memory.live(index_of(device)),
    "max_memory_allocated": lambda device=None: active().memory.peak(index_of(device)),
    "reset_peak_memory_stats": lambda device=None: active().memory.reset_peak(index_of(device)),
    "mem_get_info": lambda device=None: (DEVICE_BYTES, DEVICE_BYTES),
}


@contextlib.contextmanager
def pretended_cuda(
    capability: tuple[int, int] = HOPPER, products: Products = PRODUCTS
) -> Iterator[PretendCuda]:
    """Run the block as on a machine with CUDA devices of one compute capability.

    `products` computes operators otherwise than a CPU does, as a device may.
    """
    mode = PretendCuda(capability, products)
    torch._C._ensureCUDADeviceGuardSet()
    with contextlib.ExitStack() as stack:
        for name, value in CUDA_FUNCTIONS.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(ThreadPoolExecutor, "submit", submit_inline))
        current.mode, current.index = mode, 0
        stack.callback(setattr, current, "mode", None)
        stack.enter_context(mode)
        stack.enter_context(PretendFunctions())
        yield mode
