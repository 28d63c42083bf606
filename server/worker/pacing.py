"""Pacing: how far the host may run ahead of its devices.

A GPU works behind the host, and nothing in a denoising step waits for it. Unpaced, a whole image
would be enqueued at once: progress would run ahead of the truth, and a cancelled job would be
computed to its end.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import torch


class Mark(Protocol):
    """A place in a device's queue of work."""

    def synchronize(self) -> None:
        """Wait until the device has come to it."""
        ...


def mark_end(device: torch.device) -> Mark:
    """Return the end of what is enqueued on a CUDA device's current stream."""
    mark = torch.cuda.Event()
    mark.record(torch.cuda.current_stream(device))
    return mark


class Pacer:
    """Keeps as many steps in flight as there are devices, and no more.

    With one device that is the step enqueued last: while the device works on it, the host prepares
    the next. Layers over several devices need a step on each to keep all of them busy.
    """

    def __init__(
        self, devices: Sequence[torch.device], mark: Callable[[torch.device], Mark] = mark_end
    ) -> None:
        self._devices = [device for device in devices if device.type == "cuda"]
        self._mark = mark
        self._in_flight: deque[list[Mark]] = deque()

    def wait(self) -> None:
        """Mark the end of the step that was just enqueued; wait for older ones if too many run."""
        if not self._devices:
            return
        self._in_flight.append([self._mark(device) for device in self._devices])
        while len(self._in_flight) > len(self._devices):
            for mark in self._in_flight.popleft():
                mark.synchronize()
