"""From a checkpoint folder to a smaller one: the same layout, the layers' large matrices rounded.

Shard by shard, so that memory holds one shard's worth. The new folder appears only when it is
whole: until then it is called `NAME.partial`, and a run that dies leaves nothing else behind.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from model.config import load_config
from model.errors import CheckpointError
from model.loading.build import build_skeleton
from model.loading.checkpoint import INDEX_NAME, check_names, check_shard, list_shards
from model.loading.fingerprint import fingerprint
from model.loading.safetensors_file import SafetensorsFile, StoredTensor
from model.loading.weight_map import ParameterSlot, list_slots
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


@dataclass(frozen=True, slots=True)
class MatrixError:
    """How far a rounded matrix is from the original: the share of its squares that was lost."""

    name: str
    squares: float
    lost_squares: float

    @property
    def relative(self) -> float:
        """Return the root-mean-square error over the root-mean-square value."""
        return (self.lost_squares / max(self.squares, 1e-30)) ** 0.5


def quantize_folder(
    source: Path, target: Path, scheme: Scheme, progress: Progress | None = None
) -> list[MatrixError]:
    """Write the checkpoint in `source` to the new folder `target`, and return what it cost.

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
    rounded = list_slots(build_skeleton(config, has_vision=False, scheme=scheme), scheme)
    shards = list_shards(source)
    check_names((name for names in shards.values() for name in names), plain, source / INDEX_NAME)
    for shard, promised in shards.items():
        with SafetensorsFile(source / shard) as file:
            check_shard(file, promised, plain)
    partial = target.with_name(target.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        errors = _write_shards(source, partial, list(shards), rounded, scheme, progress)
        write_quantization_config(
            partial, QuantizationConfig(scheme.name, scheme.group, fingerprint(source))
        )
        partial.rename(target)
    except OSError as e:
        raise CheckpointError(f"{partial} cannot be written: {e.strerror or e}") from None
    return errors


def _write_shards(
    source: Path,
    partial: Path,
    shards: list[str],
    rounded: dict[str, ParameterSlot],
    scheme: Scheme,
    progress: Progress | None,
) -> list[MatrixError]:
    """Write every shard and the index that lists them."""
    total = sum((source / shard).stat().st_size for shard in shards)
    weight_map: dict[str, str] = {}
    errors: list[MatrixError] = []
    done = size = 0
    for shard in shards:
        tensors: dict[str, Tensor] = {}
        with SafetensorsFile(source / shard) as file:
            for stored in file.tensors:
                tensors |= _convert(file, stored, rounded, scheme, errors)
                done += stored.num_bytes
                if progress is not None:
                    progress(done, total)
        save_file(tensors, partial / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
        size += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (partial / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return errors


def _convert(
    file: SafetensorsFile,
    stored: StoredTensor,
    rounded: dict[str, ParameterSlot],
    scheme: Scheme,
    errors: list[MatrixError],
) -> dict[str, Tensor]:
    """Return what is written for one tensor: itself, or its rounded values and their scales."""
    weight = file.read(stored)
    if stored.name + SCALE_SUFFIX not in rounded:
        return {stored.name: weight}
    if not bool(weight.isfinite().all()):
        raise CheckpointError(f"{file.path}: tensor {stored.name} holds values that are not finite")
    packed, scale = quantize(weight, scheme)
    original = weight.float()
    lost = (dequantize(packed, scale, original.dtype) - original).square().sum()
    errors.append(MatrixError(stored.name, float(original.square().sum()), float(lost)))
    return {stored.name: packed, stored.name + SCALE_SUFFIX: scale}
