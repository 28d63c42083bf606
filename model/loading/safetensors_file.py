"""One safetensors file, read by plain streamed reads and checked before any byte is trusted.

Not the library's memory map: mapped pages count as the process's memory, and errors here name the
file and the tensor.

Source: the safetensors format: 8 bytes little-endian header length, JSON header, data.
"""

import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from model.errors import CheckpointError
from model.loading.read_plan import Piece

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip

ReadCall = Callable[[int, list[memoryview], int], int]  # file, memory, offset -> bytes read

# Source: MAX_HEADER_SIZE of the safetensors library.
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies in a file; offsets are from the file's start."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    num_bytes: int

    @property
    def is_repeated(self) -> bool:
        """Return whether one stored element stands for all."""
        return self.num_bytes == self.dtype.itemsize < self.dtype.itemsize * prod(self.shape)


class SafetensorsFile:
    """An open shard. Its tensors are listed in the order in which they lie on disk."""

    def __init__(self, path: Path, preadv: ReadCall = os.preadv) -> None:
        """Open `path` and check its header; `preadv` reads the tensors.

        Raises:
            CheckpointError: the file is missing, truncated, or its header is damaged.
        """
        self.path = path
        self._preadv = preadv
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as e:
            raise CheckpointError(
                f"{path} cannot be opened ({e.strerror}); download this shard again"
            ) from None
        try:
            self.tensors = self._read_header(path.stat().st_size)
        except CheckpointError:
            self._file.close()
            raise

    def __enter__(self) -> "SafetensorsFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; nothing can be read from it any more."""
        self._file.close()

    def read(self, stored: StoredTensor) -> Tensor:
        """Return a stored tensor in its own dtype.

        Raises:
            CheckpointError: the file ends early or cannot be read.
        """
        tensor = torch.empty(stored.shape, dtype=stored.dtype)
        self._read(stored, stored.start, tensor.view(-1).view(torch.uint8))
        return tensor

    def read_piece(self, stored: StoredTensor, piece: Piece, memory: Tensor) -> Tensor:
        """Read a piece into plain memory (uint8); return what is kept, a view [rows, columns].

        Raises:
            CheckpointError: the file ends early or cannot be read.
        """
        itemsize, done = stored.dtype.itemsize, 0
        for offset, count in piece.runs:
            window = memory[done : done + count * itemsize]
            self._read(stored, stored.start + offset * itemsize, window)
            done += count * itemsize
        elements = memory[:done].view(stored.dtype)
        return elements.unflatten(0, (piece.rows, -1))[:, piece.first : piece.last]

    def _read(self, stored: StoredTensor, start: int, window: Tensor) -> None:
        buffer = window.numpy().data  # a memoryview
        done = 0
        while done < len(buffer):
            try:
                # By offset, without a shared position: several threads read one file.
                count = self._preadv(self._file.fileno(), [buffer[done:]], start + done)
            except OSError as e:
                raise CheckpointError(
                    f"{self.path}: reading tensor {stored.name} failed ({e.strerror})"
                ) from None
            if not count:
                raise CheckpointError(
                    f"{self.path}: tensor {stored.name} ends {len(buffer) - done} bytes early; "
                    "the shard is truncated, download it again"
                )
            done += count

    def _read_header(self, file_bytes: int) -> list[StoredTensor]:
        prefix = self._file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else None
        if length is None or length > min(_MAX_HEADER_BYTES, file_bytes - 8):
            raise CheckpointError(
                f"{self.path} ({file_bytes} bytes) has no complete safetensors header; "
                "the shard is truncated or not a safetensors file, download it again"
            )
        try:
            header = json.loads(self._file.read(length))
            entries = [(name, e) for name, e in header.items() if name != "__metadata__"]
            tensors = [self._parse_entry(name, entry, 8 + length) for name, entry in entries]
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            if isinstance(e, CheckpointError):
                raise
            raise CheckpointError(
                f"{self.path}: the safetensors header is damaged ({e}); download the shard again"
            ) from None
        tensors.sort(key=lambda stored: stored.start)
        for stored in tensors:
            if stored.start + stored.num_bytes > file_bytes:
                raise CheckpointError(
                    f"{self.path}: tensor {stored.name} should end at byte "
                    f"{stored.start + stored.num_bytes}, but the file has {file_bytes}; "
                    "the shard is truncated, download it again"
                )
        return tensors

    def _parse_entry(self, name: str, entry: dict[str, Any], data_start: int) -> StoredTensor:
        dtype, shape = _DTYPES.get(entry["dtype"]), tuple(int(n) for n in entry["shape"])
        start, stop = (int(n) for n in entry["data_offsets"])
        if dtype is None:
            raise CheckpointError(f"{self.path}: tensor {name} has unknown dtype {entry['dtype']}")
        num_bytes = dtype.itemsize
        for length in shape:
            num_bytes *= length
        if start < 0 or stop - start != num_bytes:
            raise CheckpointError(
                f"{self.path}: tensor {name} of shape {list(shape)} needs {num_bytes} bytes, "
                f"but the header gives it {stop - start}; the shard is damaged"
            )
        return StoredTensor(name, dtype, shape, data_start + start, num_bytes)
