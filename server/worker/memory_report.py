"""Readings of the worker's device memory, for the server's metrics."""

import time
from collections.abc import Callable, Sequence

import torch

from server.engine.messages import MemoryReading, WorkerMemory

EVERY_S = 1.0


class MemoryReporter:
    """Reads the memory of CUDA devices now and then, so that a fast model is not slowed down."""

    def __init__(
        self,
        devices: Sequence[torch.device],
        clock: Callable[[], float] = time.monotonic,
        read: Callable[[torch.device], tuple[MemoryReading, ...]] | None = None,
    ) -> None:
        self._devices = [device for device in devices if device.type == "cuda"]
        self._clock = clock
        self._read = read or read_device
        self._last_at = float("-inf")

    def read_if_due(self) -> WorkerMemory | None:
        """Return new readings; None if the last are younger than a second, or without a device."""
        now = self._clock()
        if not self._devices or now - self._last_at < EVERY_S:
            return None
        self._last_at = now
        return WorkerMemory(readings=tuple(r for one in self._devices for r in self._read(one)))


def read_device(device: torch.device) -> tuple[MemoryReading, ...]:
    """Return what torch counts on the host: nothing waits for the device."""
    name = str(device)
    return (
        MemoryReading(name, "allocated", torch.cuda.memory_allocated(device)),
        MemoryReading(name, "reserved", torch.cuda.memory_reserved(device)),
        MemoryReading(name, "peak", torch.cuda.max_memory_allocated(device)),
        MemoryReading(name, "total", torch.cuda.get_device_properties(device).total_memory),
    )
