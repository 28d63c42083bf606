"""Quantize a checkpoint folder into a new one of the same layout.

Shard by shard, so that memory holds one shard at a time. The new folder appears only when it is
whole: until then it is called `NAME.partial`, and a run that fails leaves nothing else behind.
"""

import contextlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.config_file import load_config
from model.errors import CheckpointError, ConfigError
from model.loading.build import build_skeleton
from model.loading.checkpoint import INDEX_NAME, check_names, check_shard, list_shards
from model.loading.fingerprint import fingerprint
from model.loading.safetensors_file import SafetensorsFile, StoredTensor
from model.loading.weight_map import list_slots
from model.quantization.published import find_published_format
from model.quantization.scheme import (
    FILE_NAME,
    SCALE_SUFFIX,
    QuantizationConfig,
    Scheme,
    dequantize,
    quantize,
    rows_in_cache,
    write_quantization_config,
)

# Not copied: the weights and their list, and what was measured on the original weights.
_LEFT_OUT = ("*.safetensors", INDEX_NAME, "step_cache.json", "step_cache.png", FILE_NAME)

Progress = Callable[[int, int], None]  # bytes read, bytes in all
SaveShard = Callable[[dict[str, Tensor], Path], None]


@dataclass(frozen=True, slots=True)
class MatrixError:
    """The quantization error of a matrix, as sums of squares."""

    name: str
    squares: float
    lost_squares: float

    @property
    def relative(self) -> float:
        """Return the root-mean-square error over the root-mean-square value."""
        return (self.lost_squares / max(self.squares, 1e-30)) ** 0.5


def save_shard(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors as one safetensors file."""
    save_file(tensors, path, metadata={"format": "pt"})


def quantize_folder(
    source: Path,
    target: Path,
    scheme: Scheme,
    progress: Progress | None = None,
    save: SaveShard = save_shard,
    device: str = "cpu",
    threads: int | None = None,
) -> list[MatrixError]:
    """Write the checkpoint in `source` to the new folder `target`; return each matrix's error.

    Matrices are quantized on a device, by so many threads side by side; None: all cores.

    Raises:
        ModelError: the source is not a whole checkpoint, or is quantized already.
        CheckpointError: the target is there, or cannot be written.
        ConfigError: this machine has no such device.
    """
    if target.exists():
        raise CheckpointError(f"{target} exists; name a new folder, or delete it first")
    if (source / FILE_NAME).exists() or find_published_format(source) is not None:
        raise CheckpointError(f"{source} is quantized already; name the original checkpoint")
    _check_device(device)
    config = load_config(source)
    plain = list_slots(build_skeleton(config, has_vision=False))
    quantized = list_slots(build_skeleton(config, has_vision=False, scheme=scheme), scheme)
    shards = list_shards(source)
    check_names((name for names in shards.values() for name in names), plain, source / INDEX_NAME)
    for shard, promised in shards.items():
        with SafetensorsFile(source / shard) as file:
            check_shard(file, promised, plain)
    partial = target.with_name(target.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        conversion = _Conversion(scheme, quantized.keys(), device, threads or os.cpu_count() or 1)
        index = _write_shards(source, partial, list(shards), conversion, progress, save)
        (partial / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        write_quantization_config(
            partial, QuantizationConfig(scheme.name, scheme.group, fingerprint(source))
        )
        partial.rename(target)
    except OSError as e:
        raise CheckpointError(f"{partial} cannot be written: {e.strerror or e}") from None
    return conversion.errors


_Converted = tuple[dict[str, Tensor], MatrixError | None]


@dataclass(slots=True)
class _Conversion:
    """How tensors are converted: the scheme, the names of the quantized checkpoint, the device."""

    scheme: Scheme
    names: Collection[str]
    device: str
    threads: int
    errors: list[MatrixError] = field(default_factory=list)

    def convert_all(
        self, file: SafetensorsFile
    ) -> Iterator[tuple[StoredTensor, dict[str, Tensor]]]:
        """Yield what replaces each tensor of a file, in order; a few are converted ahead."""
        with _one_thread_each(self.threads), ThreadPoolExecutor(self.threads) as pool:
            pending: deque[tuple[StoredTensor, Future[_Converted]]] = deque()
            waiting = iter(file.tensors)
            while True:
                for stored in islice(waiting, self.threads + 1 - len(pending)):
                    pending.append((stored, pool.submit(self._convert, file, stored)))
                if not pending:
                    return
                first, converting = pending.popleft()
                tensors, error = converting.result()
                self.errors += [] if error is None else [error]
                yield first, tensors

    def _convert(self, file: SafetensorsFile, stored: StoredTensor) -> _Converted:
        """Return what replaces a stored tensor: itself, or its quantized values and scales."""
        weight = file.read(stored)
        if stored.name + SCALE_SUFFIX not in self.names:
            return {stored.name: weight}, None
        weight = weight.to(self.device)
        if not bool(weight.isfinite().all()):
            raise CheckpointError(
                f"{file.path}: tensor {stored.name} holds values that are not finite"
            )
        packed, scale = quantize(weight, self.scheme)
        error = _measure_error(stored.name, weight, packed, scale)
        return {stored.name: packed.cpu(), stored.name + SCALE_SUFFIX: scale.cpu()}, error


def _measure_error(name: str, weight: Tensor, packed: Tensor, scale: Tensor) -> MatrixError:
    """Return the error of a quantized matrix, rows by rows: float32 copies stay small."""
    rows = rows_in_cache(weight) if weight.device.type == "cpu" else len(weight)
    squares = lost = 0.0
    pieces = zip(weight.split(rows), packed.split(rows), scale.split(rows), strict=True)
    for part, values, scales in pieces:
        original = part.float()
        near = dequantize(values, scales, original.dtype)
        lost += float((near - original).square().sum())
        squares += float(original.square().sum())
    return MatrixError(name, squares, lost)


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:
        raise ConfigError(
            f"device {device!r} cannot be used here ({str(e).splitlines()[0]}); try cpu"
        ) from None


@contextlib.contextmanager
def _one_thread_each(threads: int) -> Iterator[None]:
    """Let every operation of torch run on one thread, where several threads share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write_shards(
    source: Path,
    partial: Path,
    shards: list[str],
    conversion: _Conversion,
    progress: Progress | None,
    save: SaveShard,
) -> dict[str, Any]:
    """Write every shard, and return the index that lists them."""
    total = sum((source / shard).stat().st_size for shard in shards)
    weight_map: dict[str, str] = {}
    done = size = 0
    for shard in shards:
        tensors: dict[str, Tensor] = {}
        with SafetensorsFile(source / shard) as file:
            for stored, converted in conversion.convert_all(file):
                tensors |= converted
                done += stored.num_bytes
                if progress is not None:
                    progress(done, total)
        save(tensors, partial / shard)
        weight_map |= dict.fromkeys(tensors, shard)
        size += sum(tensor.nbytes for tensor in tensors.values())
    return {"metadata": {"total_size": size}, "weight_map": weight_map}
