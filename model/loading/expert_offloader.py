"""Expert offloader: prefetches offloaded experts into two staging buffers on the device.

Each buffer holds the experts of one layer. While one layer computes from one buffer, a thread
copies the next layer's experts to the other. An image has thousands of tokens and so needs every
expert of every layer at every step; a single token of text needs a few, and only those are copied.

The results equal those of resident experts: the same weights, multiplied by the same code.
"""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from model.moe import Experts

NUM_STAGING_BUFFERS = 2
_ALIGNMENT = 256  # bytes; of every tensor in a buffer
# A step that uses a larger share of the experts is an image's: the next layer is prefetched.
_PREFETCH_SHARE = 0.5


class Source(Protocol):
    """Memory or files that hold the experts while they are not on the device."""

    def fill(self, layer: int, tensors: Mapping[str, Tensor], experts: Sequence[int]) -> None:
        """Copy the parameters of some experts of a layer to their rows of stacked tensors.

        Raises:
            CheckpointError: a file cannot be read any more.
        """
        ...


@dataclass(slots=True, eq=False)
class StagingBuffer:
    """Device memory for one layer's experts: the layer, and the experts that have been copied."""

    memory: Tensor
    layer: int | None = None
    present: set[int] = field(default_factory=set)
    pending: Future[None] | None = None


class ExpertOffloader:
    """Copies the experts of offloaded layers to the device, and prefetches the next layer's.

    Layers call `acquire` just before they compute with their experts, always from the thread that
    generates.
    """

    def __init__(
        self, experts: Mapping[int, Experts], source: Source, device: torch.device
    ) -> None:
        """Take over the stacked parameters of some layers' experts, by layer, in running order."""
        self._experts = dict(experts)
        self.layers = tuple(experts)
        self._source = source
        size = max(map(staging_bytes, self._experts.values()))
        self._buffers = [  # the one used last is last
            StagingBuffer(torch.empty(size, dtype=torch.uint8, device=device))
            for _ in range(NUM_STAGING_BUFFERS)
        ]
        self._stream = _CopyStream(device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="experts")
        self._lock = threading.Lock()
        self.bytes_copied = 0

    def acquire(self, layer: int, wanted: Sequence[int]) -> None:
        """Copy the wanted experts of a layer to the device, and start to prefetch the next layer's.

        Raises:
            CheckpointError: they cannot be read.
        """
        buffer = self._buffer_of(layer) or self._oldest(beside=None)
        self._wait(buffer)
        if buffer.layer != layer:
            buffer.layer, buffer.present = layer, set()
        missing = [expert for expert in wanted if expert not in buffer.present]
        if missing:
            self._stream.begin()
            self._copy(buffer, layer, missing)
        self._stream.wait()
        self._install(buffer, layer)
        num_experts = len(self._experts[layer].gate_and_up_proj)
        if len(wanted) > num_experts * _PREFETCH_SHARE:
            following = self.layers[(self.layers.index(layer) + 1) % len(self.layers)]
            self._prefetch(following, buffer)

    def close(self) -> None:
        """End the thread, once its last copy is done."""
        self._thread.shutdown(wait=True)

    def _prefetch(self, layer: int, beside: StagingBuffer) -> None:
        if self._buffer_of(layer) is not None:
            return
        buffer = self._oldest(beside)
        self._wait(buffer)
        buffer.layer, buffer.present = layer, set()
        every = range(len(self._experts[layer].gate_and_up_proj))
        self._stream.begin()
        buffer.pending = self._thread.submit(self._copy, buffer, layer, every)

    def _copy(self, buffer: StagingBuffer, layer: int, experts: Sequence[int]) -> None:
        with self._lock, self._stream:
            tensors = view_as_experts(buffer.memory, self._experts[layer])
            self._source.fill(layer, tensors, experts)
        buffer.present.update(experts)
        share = len(experts) / len(self._experts[layer].gate_and_up_proj)
        self.bytes_copied += int(share * sum(tensor.nbytes for tensor in tensors.values()))

    def _buffer_of(self, layer: int) -> StagingBuffer | None:
        return next((buffer for buffer in self._buffers if buffer.layer == layer), None)

    def _oldest(self, beside: StagingBuffer | None) -> StagingBuffer:
        """Return the buffer that may be reused: an empty one, or the one used longest ago."""
        return next(buffer for buffer in self._buffers if buffer is not beside)

    def _wait(self, buffer: StagingBuffer) -> None:
        """Wait for a buffer's prefetch, if there is one.

        One that failed is discarded: `acquire` copies again, and raises.
        """
        pending, buffer.pending = buffer.pending, None
        if pending is not None and pending.exception() is not None:
            buffer.layer, buffer.present = None, set()

    def _install(self, buffer: StagingBuffer, layer: int) -> None:
        experts = self._experts[layer]
        for name, tensor in view_as_experts(buffer.memory, experts).items():
            setattr(experts, name, nn.Parameter(tensor, requires_grad=False))
        self._buffers.remove(buffer)
        self._buffers.append(buffer)


class _CopyStream:
    """The CUDA stream of the copies, and its order with the computing stream; none on a CPU.

    Copies begin when the work queued before them is done, and later work waits for them on the
    device, without blocking this process.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self) -> None:
        """Make later copies wait for the work queued so far."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def wait(self) -> None:
        """Make later work wait for the copies queued so far."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def __enter__(self) -> None:
        if self._stream is not None:
            self._previous = torch.cuda.current_stream(self._device)
            torch.cuda.set_stream(self._stream)

    def __exit__(self, *error: object) -> None:
        if self._stream is not None:
            torch.cuda.set_stream(self._previous)


class HostSource:
    """Experts in the host's memory: pinned for a GPU, so that copies overlap with its work."""

    def __init__(self, experts: Mapping[int, Experts]) -> None:
        """Hold the present parameters."""
        self._tensors = {
            layer: {name: parameter.data for name, parameter in module.named_parameters()}
            for layer, module in experts.items()
        }

    def fill(self, layer: int, tensors: Mapping[str, Tensor], experts: Sequence[int]) -> None:
        for name, source in self._tensors[layer].items():
            if len(experts) == len(source):
                tensors[name].copy_(source, non_blocking=True)
                continue
            for expert in experts:
                tensors[name][expert].copy_(source[expert], non_blocking=True)


def staging_bytes(experts: Experts) -> int:
    """Return the size of a staging buffer for a layer's experts."""
    return sum(_padded(parameter) for parameter in experts.parameters())


def view_as_experts(memory: Tensor, experts: Experts) -> dict[str, Tensor]:
    """Return tensors like a layer's stacked parameters, one after the other in flat memory."""
    tensors: dict[str, Tensor] = {}
    start = 0
    for name, parameter in experts.named_parameters():
        flat = memory[start : start + parameter.nbytes]
        tensors[name] = flat.view(parameter.dtype).view(parameter.shape)
        start += _padded(parameter)
    return tensors


def _padded(parameter: Tensor) -> int:
    return -(-parameter.nbytes // _ALIGNMENT) * _ALIGNMENT
