"""Quantize a checkpoint folder into a new one of the same layout.

Shard by shard, so that memory holds one shard at a time. The new folder appears only when it is
whole: until then it is called `NAME.partial`, and a run that fails leaves nothing else behind.
"""

import json
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from model.config_file import load_config
from model.errors import CheckpointError
from model.loading.build import build_skeleton
from model.loading.checkpoint import INDEX_NAME, check_names, check_shard, list_shards
from model.loading.fingerprint import fingerprint
from model.loading.safetensors_file import SafetensorsFile, StoredTensor
from model.loading.weight_map import list_slots
from model.quantization.scheme import (
    FILE_NAME,
    SCALE_SUFFIX,
    QuantizationConfig,
    Scheme,
    dequantize,
    quantize,
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
) -> list[MatrixError]:
    """Write the checkpoint in `source` to the new folder `target`; return each matrix's error.

    Raises:
        ModelError: the source is not a whole checkpoint, or is quantized already.
        CheckpointError: the target is there, or cannot be written.
    """
    if target.exists():
        raise CheckpointError(f"{target} exists; name a new folder, or delete it first")
    if (source / FILE_NAME).exists():
        raise CheckpointError(f"{source} is quantized already; name the original checkpoint")
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
        conversion = _Conversion(scheme, quantized.keys())
        index = _write_shards(source, partial, list(shards), conversion, progress, save)
        (partial / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        write_quantization_config(
            partial, QuantizationConfig(scheme.name, scheme.group, fingerprint(source))
        )
        partial.rename(target)
    except OSError as e:
        raise CheckpointError(f"{partial} cannot be written: {e.strerror or e}") from None
    return conversion.errors


@dataclass(slots=True)
class _Conversion:
    """The scheme, the tensors of the quantized checkpoint, and the errors made so far."""

    scheme: Scheme
    names: Collection[str]
    errors: list[MatrixError] = field(default_factory=list)

    def convert(self, file: SafetensorsFile, stored: StoredTensor) -> dict[str, Tensor]:
        """Return what replaces a stored tensor: itself, or its quantized values and scales."""
        weight = file.read(stored)
        if stored.name + SCALE_SUFFIX not in self.names:
            return {stored.name: weight}
        if not bool(weight.isfinite().all()):
            raise CheckpointError(
                f"{file.path}: tensor {stored.name} holds values that are not finite"
            )
        packed, scale = quantize(weight, self.scheme)
        original = weight.float()
        error = (dequantize(packed, scale, original.dtype) - original).square().sum()
        self.errors.append(MatrixError(stored.name, float(original.square().sum()), float(error)))
        return {stored.name: packed, stored.name + SCALE_SUFFIX: scale}


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
            for stored in file.tensors:
                tensors |= conversion.convert(file, stored)
                done += stored.num_bytes
                if progress is not None:
                    progress(done, total)
        save(tensors, partial / shard)
        weight_map |= dict.fromkeys(tensors, shard)
        size += sum(tensor.nbytes for tensor in tensors.values())
    return {"metadata": {"total_size": size}, "weight_map": weight_map}
