"""Layers over several devices (pipeline parallel): stages, microbatches and their order.

A stage is a run of neighbouring layers on one device. A microbatch is the rows of one attention
group, such as the conditional or the unconditional row of an image. While a device computes one
microbatch, the device before it computes the next. Nothing here waits for a device: everything is
enqueued, and copies go over streams of their own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Stage:
    """The layers [start, stop), which are on one device."""

    device: torch.device
    start: int
    stop: int


def list_stages(devices: Sequence[torch.device], start: int, stop: int) -> list[Stage]:
    """Return the stages of the layers [start, stop); `devices` has the device of every layer."""
    stages: list[Stage] = []
    for layer in range(start, stop):
        if stages and stages[-1].device == devices[layer]:
            stages[-1] = Stage(devices[layer], stages[-1].start, layer + 1)
        else:
            stages.append(Stage(devices[layer], layer, layer + 1))
    return stages


def pipeline_order(num_stages: int, num_microbatches: int) -> Iterator[tuple[int, int]]:
    """Yield (stage, microbatch) in the order in which they are enqueued.

    In waves: those of one wave are on different devices and run at the same time. M microbatches
    over S equal stages take S + M - 1 stage times instead of S x M.

    Source: Huang et al. 2019, GPipe (arXiv 1811.06965), figure 2c, its forward half.
    """
    for wave in range(num_stages + num_microbatches - 1):
        for stage in range(max(0, wave - num_microbatches + 1), min(wave + 1, num_stages)):
            yield stage, wave - stage


def move(x: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on another device, without holding up the computations of either.

    torch makes the streams of a copy wait for each other; so a copy gets two streams of its own.
    """
    if x.device == device:
        return x
    if x.device.type != "cuda":
        return x.to(device)
    source, target = torch.cuda.current_stream(x.device), torch.cuda.current_stream(device)
    from_stream, to_stream = _copy_stream(source), _copy_stream(target)
    from_stream.wait_stream(source)
    with torch.cuda.stream(from_stream), torch.cuda.stream(to_stream):
        moved = x.to(device, non_blocking=True)
    target.wait_stream(to_stream)
    # The allocator may give memory away only when the stream that still uses it is done.
    x.record_stream(from_stream)
    moved.record_stream(target)
    return moved


_copy_streams: dict[tuple[torch.device, int], torch.cuda.Stream] = {}


def _copy_stream(stream: torch.cuda.Stream) -> torch.cuda.Stream:
    """Return the stream for copies from and to a computing stream, made once."""
    key = (stream.device, stream.cuda_stream)
    if key not in _copy_streams:
        _copy_streams[key] = torch.cuda.Stream(stream.device)
    return _copy_streams[key]
