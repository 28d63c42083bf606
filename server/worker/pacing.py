"""Pacing: how far the host may run ahead of its devices.

A GPU works behind the host, and nothing in a denoising step waits for it. Unpaced, a whole image
would be enqueued at once: progress would run ahead of the truth, and a cancelled job would be
computed to its end.
"""

from collections import deque
from collections.abc import Sequence

import torch


class Pacer:
    """Keeps one step in flight on each device, beyond the one that is being enqueued."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._devices = [device for device in devices if device.type == "cuda"]
        self._in_flight: deque[list[torch.cuda.Event]] = deque()

    def wait(self) -> None:
        """Note the end of what was just enqueued; wait for the oldest step if too many run.

        It returns while the device still works on the newest one, and so never lets it idle.
        """
        if not self._devices:
            return
        marks = [torch.cuda.Event() for _ in self._devices]
        for mark, device in zip(marks, self._devices, strict=True):
            mark.record(torch.cuda.current_stream(device))
        self._in_flight.append(marks)
        while len(self._in_flight) > len(self._devices):
            for mark in self._in_flight.popleft():
                mark.synchronize()
