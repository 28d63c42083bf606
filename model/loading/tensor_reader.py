"""Reading of one stored tensor into its parameter: whole or a shard, as it is or quantized."""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from model.errors import CheckpointError
from model.loading.read_plan import Piece, plan_pieces
from model.loading.safetensors_file import SafetensorsFile, StoredTensor
from model.loading.shard_plan import ShardSlice
from model.loading.weight_map import ParameterSlot
from model.quantization.scheme import quantize, scheme_of_dtype

_SMALLEST_PINNED_BYTES = 1 << 20


class ReadBuffer(threading.local):
    """Memory to read into, reused for the next piece; one for each thread.

    For a CUDA device two pieces of pinned memory take turns: while one is copied to the device, the
    next piece is read into the other.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._pinned = [_PinnedBuffer(), _PinnedBuffer()]  # the one used last is last

    def of(self, num_bytes: int) -> Tensor:
        """Return at least `num_bytes` bytes; only those that are written take memory."""
        if self._memory.numel() < num_bytes:
            self._memory = torch.empty(num_bytes, dtype=torch.uint8)
        return self._memory

    @contextlib.contextmanager
    def pinned(self, num_bytes: int, device: torch.device) -> Iterator[Tensor]:
        """Yield at least `num_bytes` of pinned memory, for copies queued on the current stream."""
        buffer = self._pinned.pop(0)
        self._pinned.append(buffer)
        yield buffer.of(num_bytes)
        buffer.copied = torch.cuda.Event(blocking=True)
        buffer.copied.record(torch.cuda.current_stream(device))


class _PinnedBuffer:
    """Pinned memory, and the event at which what it held has been copied."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self.copied: torch.cuda.Event | None = None

    def of(self, num_bytes: int) -> Tensor:
        if self.copied is not None:
            self.copied.synchronize()
        if self._memory.numel() < num_bytes:
            # Few sizes: the allocator of pinned memory keeps what it has ever held.
            size = max(_SMALLEST_PINNED_BYTES, 1 << (num_bytes - 1).bit_length())
            self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return self._memory


class ReaderStreams(threading.local):
    """The CUDA streams of a reading thread, one for each device it fills."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    @contextlib.contextmanager
    def use(self, device: torch.device) -> Iterator["torch.cuda.Stream | None"]:
        """Queue the block's copies on the thread's own stream, behind the work queued so far."""
        if device.type != "cuda":
            yield None
            return
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        stream = self._streams[device]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            yield stream


class FiniteCheck:
    """Whether the tensors read from a file are finite.

    Values in the host's memory are checked at once. A device's are checked there, and `finish`
    waits for all of them together.
    """

    def __init__(self) -> None:
        self._flags: dict[torch.device, list[tuple[SafetensorsFile, str, torch.dtype, Tensor]]] = {}

    def add(self, file: SafetensorsFile, stored: StoredTensor, values: Tensor) -> None:
        """Check a tensor.

        Raises:
            CheckpointError: values in the host's memory are not finite.
        """
        flag = _is_finite(values)
        if flag is None:
            return
        if flag.device.type != "cpu":
            flags = self._flags.setdefault(flag.device, [])
            flags.append((file, stored.name, values.dtype, flag))
        elif not flag:
            raise _not_finite(file, stored.name, values.dtype)

    def finish(self) -> None:
        """Wait for the devices' checks.

        Raises:
            CheckpointError: naming the first tensor whose values are not finite.
        """
        checks, self._flags = self._flags, {}
        for flags in checks.values():
            results = torch.stack([flag for *_, flag in flags]).tolist()
            for (file, name, dtype, _), is_finite in zip(flags, results, strict=True):
                if not is_finite:
                    raise _not_finite(file, name, dtype)


def read_tensor(
    file: SafetensorsFile,
    stored: StoredTensor,
    shard: ShardSlice | None,
    values: Tensor,
    buffer: ReadBuffer,
) -> None:
    """Fill `values` with a tensor or with this rank's part of it, converting its dtype.

    `values` are contiguous. On a CUDA device the copies are queued on the current stream.

    Raises:
        CheckpointError: the file cannot be read.
    """
    flat = values.view(-1)
    if stored.is_repeated:
        flat.copy_(read_whole(file, replace(stored, shape=(1,)), values.device, buffer))
        return
    for piece in plan_pieces(stored.shape, shard, stored.dtype.itemsize):
        target = flat[piece.start : piece.start + piece.num_kept]
        if target.is_cuda:
            _upload(file, stored, piece, target, buffer)
        elif piece.is_whole and target.dtype == stored.dtype:
            file.read_piece(stored, piece, target.view(torch.uint8))
        else:
            memory = buffer.of(piece.num_read * stored.dtype.itemsize)
            kept = file.read_piece(stored, piece, memory)
            target.view(kept.shape).copy_(kept)


def read_whole(
    file: SafetensorsFile, stored: StoredTensor, device: torch.device, buffer: ReadBuffer
) -> Tensor:
    """Return a whole tensor in its own dtype in new memory on a device.

    Raises:
        CheckpointError: the file cannot be read.
    """
    values = torch.empty(stored.shape, dtype=stored.dtype, device=device)
    read_tensor(file, stored, None, values, buffer)
    return values


def _upload(
    file: SafetensorsFile, stored: StoredTensor, piece: Piece, target: Tensor, buffer: ReadBuffer
) -> None:
    """Read a piece into pinned memory and queue the copy of what is kept."""
    itemsize = stored.dtype.itemsize
    with buffer.pinned(piece.num_kept * itemsize, target.device) as pinned:
        if piece.is_whole:
            staged = file.read_piece(stored, piece, pinned).flatten()
        else:
            kept = file.read_piece(stored, piece, buffer.of(piece.num_read * itemsize))
            staged = pinned[: piece.num_kept * itemsize].view(stored.dtype)
            staged.view(kept.shape).copy_(kept)
        if target.dtype == stored.dtype:
            target.copy_(staged, non_blocking=True)
        else:  # converted on the device: on the host, it would be through pageable memory
            target.copy_(staged.to(target.device, non_blocking=True))


def memory_for(dtype: torch.dtype, slot: ParameterSlot, parameters: Mapping[str, Tensor]) -> Tensor:
    """Return what a tensor is read into: its parameter or, if it is to be quantized, new memory."""
    view = slot.view(parameters)
    if not _is_quantized_on_load(slot, parameters):
        return view
    return torch.empty(slot.local_shape, dtype=dtype, device=view.device)


def install(slot: ParameterSlot, parameters: Mapping[str, Tensor], values: Tensor) -> int:
    """Quantize values that were read, if their parameter is quantized; return the bytes held."""
    if not _is_quantized_on_load(slot, parameters):
        return values.nbytes
    view, scale_view = slot.view(parameters), slot.scale_view(parameters)
    assert scale_view is not None
    packed, scale = quantize(values, scheme_of_dtype(view.dtype))
    view.copy_(packed)
    scale_view.copy_(scale)
    return view.nbytes + scale_view.nbytes


def _is_quantized_on_load(slot: ParameterSlot, parameters: Mapping[str, Tensor]) -> bool:
    """Return whether a tensor is quantized in memory but not on disk."""
    return slot.dtype is None and slot.scale_view(parameters) is not None


def _is_finite(values: Tensor) -> Tensor | None:
    """Return a flag on the device of the values, or None where they cannot but be finite."""
    if values.dtype == torch.float8_e4m3fn:  # has no infinity; nan is 0x7f or 0xff
        return ((values.view(torch.uint8) & 0x7F) != 0x7F).all()
    if not values.is_floating_point():
        return None
    # Forty times as fast as `isfinite` on bfloat16; nan and infinity both reach an extreme.
    low, high = values.aminmax()
    return low.isfinite() & high.isfinite()


def _not_finite(file: SafetensorsFile, name: str, dtype: torch.dtype) -> CheckpointError:
    return CheckpointError(
        f"{file.path}: tensor {name} holds values that are not finite as {dtype}; the shard is "
        "damaged, or the dtype is too narrow for it"
    )
