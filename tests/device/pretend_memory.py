"""Memory of devices that pretend: the bytes of the tensors on each, and nothing beside them."""

import weakref
from collections import Counter

import torch
from torch import Tensor


class PretendMemory:
    """Counts what is alive on each device, and the most that ever was."""

    def __init__(self) -> None:
        self._live: Counter[int] = Counter()
        self._peak: Counter[int] = Counter()
        self._seen: set[int] = set()

    def hold(self, data: Tensor, device: torch.device) -> None:
        """Count the memory under a tensor, once, until nothing refers to it."""
        storage = data.untyped_storage()
        key, num_bytes, index = storage._cdata, storage.nbytes(), device.index
        if key in self._seen:
            return
        self._seen.add(key)
        self._live[index] += num_bytes
        self._peak[index] = max(self._peak[index], self._live[index])
        weakref.finalize(storage, self._forget, key, num_bytes, index)

    def live(self, index: int) -> int:
        """Return the bytes of a device that are in use."""
        return self._live[index]

    def peak(self, index: int) -> int:
        """Return the most bytes of a device that were in use since the last `reset_peak`."""
        return self._peak[index]

    def reset_peak(self, index: int) -> None:
        self._peak[index] = self._live[index]

    def _forget(self, key: int, num_bytes: int, index: int) -> None:
        self._seen.discard(key)
        self._live[index] -= num_bytes
