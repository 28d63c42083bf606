"""Experts that do not fit on the device: lent to it one layer after the other.

The device holds two places, each as large as the experts of a layer. While one layer computes in
one place, a thread fills the other with the layer that comes next. An image has thousands of
tokens and so needs every expert of every layer at every step; a single token of text needs a few,
and then only those are fetched.

The numbers are those of experts that never left: the same weights, multiplied by the same lines.
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
_ALIGNMENT = 256  # bytes; of every tensor in a place
# Fetching single experts pays as long as a step leaves at least this share of them out.
_SHARE_LEFT_OUT = 0.5


class Source(Protocol):
    """Where experts lie when they are not on the device."""

    def fill(self, layer: int, tensors: Mapping[str, Tensor], experts: Sequence[int]) -> None:
        """Copy the parameters of some experts of a layer to their rows of stacked tensors.

        Raises:
            CheckpointError: a file cannot be read any more.
        """
        ...


@dataclass(slots=True, eq=False)
class StagingBuffer:
    """Memory for one layer's experts: whose they are, and which of them are there."""

    memory: Tensor
    layer: int | None = None
    present: set[int] = field(default_factory=set)
    pending: Future[None] | None = None


class ExpertOffloader:
    """Lends the experts of offloaded layers to the device, and fetches the next layer's ahead.

    Layers call `acquire` just before they compute with their experts, each from the one thread
    that draws.
    """

    def __init__(
        self, experts: Mapping[int, Experts], source: Source, device: torch.device
    ) -> None:
        """Take over the stacked parameters of some layers' experts, by layer, in running order."""
        self._experts = dict(experts)
        self._order = list(experts)
        self._source = source
        size = max(map(staging_bytes, self._experts.values()))
        self._places = [
            StagingBuffer(torch.empty(size, dtype=torch.uint8, device=device))
            for _ in range(NUM_STAGING_BUFFERS)
        ]
        self._copies = _CopyStream(device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="experts")
        self._lock = threading.Lock()
        self.bytes_fetched = 0
        for layer, own in self._experts.items():
            own.before_use = _Acquire(self, layer)

    def acquire(self, layer: int, wanted: Sequence[int]) -> None:
        """Have the wanted experts of a layer on the device, and start to fetch what comes next.

        Raises:
            CheckpointError: they cannot be fetched.
        """
        place = self._buffer_of(layer) or self._oldest(beside=None)
        self._wait(place)
        if place.layer != layer:
            place.layer, place.present = layer, set()
        missing = [expert for expert in wanted if expert not in place.present]
        if missing:
            self._copies.begin()
            self._fetch(place, layer, missing)
        self._copies.wait()
        self._install(place, layer)
        num_experts = len(self._experts[layer].gate_and_up_proj)
        if len(wanted) > num_experts * _SHARE_LEFT_OUT:
            self._prefetch(self._order[(self._order.index(layer) + 1) % len(self._order)], place)

    def close(self) -> None:
        """End the thread, once what it fetches is there."""
        self._thread.shutdown(wait=True)

    def _prefetch(self, layer: int, beside: StagingBuffer) -> None:
        if self._buffer_of(layer) is not None:
            return
        place = self._oldest(beside)
        self._wait(place)
        place.layer, place.present = layer, set()
        every = range(len(self._experts[layer].gate_and_up_proj))
        self._copies.begin()
        place.pending = self._thread.submit(self._fetch, place, layer, every)

    def _fetch(self, place: StagingBuffer, layer: int, experts: Sequence[int]) -> None:
        with self._lock, self._copies:
            tensors = view_as_experts(place.memory, self._experts[layer])
            self._source.fill(layer, tensors, experts)
        place.present.update(experts)
        share = len(experts) / len(self._experts[layer].gate_and_up_proj)
        self.bytes_fetched += int(share * sum(tensor.nbytes for tensor in tensors.values()))

    def _buffer_of(self, layer: int) -> StagingBuffer | None:
        return next((place for place in self._places if place.layer == layer), None)

    def _oldest(self, beside: StagingBuffer | None) -> StagingBuffer:
        """Return the place that may be filled anew: an empty one, or the one longest unused."""
        return next(place for place in self._places if place is not beside)

    def _wait(self, place: StagingBuffer) -> None:
        """Wait for a place's fetch, if one is on its way.

        One that failed counts as never made: whoever needs the layer fetches it then, and fails.
        """
        pending, place.pending = place.pending, None
        if pending is not None and pending.exception() is not None:
            place.layer, place.present = None, set()

    def _install(self, place: StagingBuffer, layer: int) -> None:
        own = self._experts[layer]
        for name, tensor in view_as_experts(place.memory, own).items():
            setattr(own, name, nn.Parameter(tensor, requires_grad=False))
        self._places.remove(place)
        self._places.append(place)  # the one used last is last


@dataclass(frozen=True, slots=True)
class _Acquire:
    """What a layer's experts call before they compute."""

    stream: ExpertOffloader
    layer: int

    def __call__(self, experts: Sequence[int]) -> None:
        self.stream.acquire(self.layer, experts)


class _CopyStream:
    """Order between computing and copying; on a CPU both are done when they return.

    On a GPU copies run in a stream of their own: they begin when what was queued before is done,
    and computing waits for them without holding up this process.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self) -> None:
        """Let coming copies wait for all that has been queued for computing."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def wait(self) -> None:
        """Let coming computing wait for all copies."""
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
        """Keep the parameters as they are now."""
        self._tensors = {
            layer: {name: parameter.data for name, parameter in own.named_parameters()}
            for layer, own in experts.items()
        }

    def fill(self, layer: int, tensors: Mapping[str, Tensor], experts: Sequence[int]) -> None:
        for name, source in self._tensors[layer].items():
            if len(experts) == len(source):
                tensors[name].copy_(source, non_blocking=True)
                continue
            for expert in experts:
                tensors[name][expert].copy_(source[expert], non_blocking=True)


def staging_bytes(experts: Experts) -> int:
    """Return how much memory a place needs for a layer's experts."""
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
