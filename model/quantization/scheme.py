"""Quantization schemes: fp8, int8 and int4 values with a scale for each group of columns.

A scale belongs to neighbouring columns of one row, so that ranks can split a matrix by rows or, at
group borders, by columns and still hold the values of a single process.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from model.config_file import read_json
from model.errors import CheckpointError, ConfigError
from model.fused import FusedKernel
from model.quantization.published import PublishedFormat, find_published_format

SchemeName = Literal["fp8", "int8", "int4"]
FILE_NAME = "quantization.json"
FORMAT = 1
SCALE_SUFFIX = "_scale"

# Elements that are quantized at once on a CPU, with all candidates in the cache of a core.
_CACHED_ELEMENTS = 1 << 17

# Scales that are tried for a group of 4-bit integers, as shares of the one that clips nothing: to
# clip the largest value a little can cost less than to spread sixteen levels wide.
_INT4_SHRINKAGES = tuple(1.0 - 0.05 * i for i in range(8))


@dataclass(frozen=True, slots=True)
class Scheme:
    """A quantized format. `group` columns share a scale; 0 stands for a whole row."""

    name: SchemeName
    group: int
    dtype: torch.dtype
    lowest: float  # of the values that are stored
    highest: float
    scale_dtype: torch.dtype

    def packed(self, columns: int) -> int:
        """Return the number of stored elements of so many columns."""
        return columns // 2 if self.name == "int4" else columns

    def group_of(self, columns: int) -> int:
        """Return how many columns of a matrix share a scale: the group, or what divides both."""
        return math.gcd(columns, self.group) if self.group else columns


SCHEMES: dict[str, Scheme] = {
    "int8": Scheme("int8", 128, torch.int8, -127.0, 127.0, torch.bfloat16),
    # One float8 scale for each row: the matrix units of a GPU take no other.
    "fp8": Scheme("fp8", 0, torch.float8_e4m3fn, -448.0, 448.0, torch.float32),
    "int4": Scheme("int4", 32, torch.uint8, -8.0, 7.0, torch.bfloat16),
}


def scheme_of_dtype(dtype: torch.dtype) -> Scheme:
    """Return the scheme whose quantized values have this dtype."""
    return next(scheme for scheme in SCHEMES.values() if scheme.dtype == dtype)


def quantize(weight_OI: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return a quantized matrix, rounded to nearest, and its scales.

    Shapes: weight_OI of any float dtype -> packed_OZ, scale_OQ.
    """
    if weight_OI.device.type != "cpu":
        return _quantize_at_once(weight_OI, scheme)
    pieces = [_quantize_at_once(rows, scheme) for rows in weight_OI.split(rows_in_cache(weight_OI))]
    packed, scales = zip(*pieces, strict=True)
    return torch.cat(packed), torch.cat(scales)


def rows_in_cache(weight_OI: Tensor) -> int:
    """Return how many rows of a matrix the cache of a core holds while they are computed with."""
    return max(1, _CACHED_ELEMENTS * len(weight_OI) // max(1, weight_OI.numel()))


def _quantize_at_once(weight_OI: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    group = scheme.group_of(weight_OI.shape[-1])
    weight_OQZ = weight_OI.float().unflatten(-1, (-1, group))
    if scheme.name == "int4":
        scale_OQ = _search_scale(weight_OQZ, scheme)
    else:
        scale_OQ = _as_scale(weight_OQZ.abs().amax(dim=-1) / scheme.highest, scheme)
    quantized_OI = _round(weight_OQZ, scale_OQ, scheme).flatten(-2)
    if scheme.name == "int4":
        low, high = (
            (quantized_OI.to(torch.int8) + 8).to(torch.uint8).unflatten(-1, (-1, 2)).unbind(-1)
        )
        return low | (high << 4), scale_OQ
    return quantized_OI.to(scheme.dtype), scale_OQ


@FusedKernel
def dequantize(packed_OZ: Tensor, scale_OQ: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the matrix of packed values and scales.

    Leading axes, such as one of experts, are kept. Shapes: packed_OZ, scale_OQ -> weight_OI.
    """
    if packed_OZ.dtype == torch.uint8:
        values_OI = torch.stack((packed_OZ & 15, packed_OZ >> 4), dim=-1).flatten(-2).to(dtype) - 8
    else:
        values_OI = packed_OZ.to(dtype)
    groups = scale_OQ.shape[-1]
    if groups == 1:
        return values_OI * scale_OQ.to(dtype)
    return (values_OI.unflatten(-1, (groups, -1)) * scale_OQ.to(dtype).unsqueeze(-1)).flatten(-2)


def _round(weight_OQZ: Tensor, scale_OQ: Tensor, scheme: Scheme) -> Tensor:
    """Return weights in units of their scales, float32, at values of the stored dtype's range."""
    units_OQZ = weight_OQZ / scale_OQ.float().unsqueeze(-1)
    units_OQZ = units_OQZ.clamp_(scheme.lowest, scheme.highest)
    return units_OQZ if scheme.name == "fp8" else units_OQZ.round_()


def _as_scale(scale_OQ: Tensor, scheme: Scheme) -> Tensor:
    """Return scales in their dtype, before weights are divided by them; never 0."""
    smallest = torch.finfo(torch.bfloat16).tiny
    scale_OQ = torch.where(scale_OQ.abs() < smallest, smallest, scale_OQ)
    return scale_OQ.to(scheme.scale_dtype)


def _search_scale(weight_OQZ: Tensor, scheme: Scheme) -> Tensor:
    """Return for each group the scale, of a few, that leaves the smallest squared error.

    The levels reach one further down than up, so the scale has the sign that puts the value
    furthest from zero there.
    """
    furthest = weight_OQZ.abs().argmax(dim=-1, keepdim=True)
    scale_OQ = weight_OQZ.gather(-1, furthest).squeeze(-1) / scheme.lowest
    best_OQ = _as_scale(scale_OQ, scheme)
    least_OQ = torch.full_like(scale_OQ, torch.inf)
    for shrinkage in _INT4_SHRINKAGES:
        tried_OQ = _as_scale(scale_OQ * shrinkage, scheme)
        near_OQZ = _round(weight_OQZ, tried_OQ, scheme).mul_(tried_OQ.float().unsqueeze(-1))
        error_OQ = near_OQZ.sub_(weight_OQZ).square_().sum(dim=-1)
        best_OQ = torch.where(error_OQ < least_OQ, tried_OQ, best_OQ)
        least_OQ = torch.minimum(error_OQ, least_OQ)
    return best_OQ


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """The contents of `quantization.json` in a checkpoint folder."""

    scheme: SchemeName
    group: int
    source: str  # fingerprint of the checkpoint that was quantized
    format: int = FORMAT


def write_quantization_config(folder: Path, config: QuantizationConfig) -> None:
    """Write `quantization.json` into a folder."""
    text = json.dumps(asdict(config), indent=2) + "\n"
    (folder / FILE_NAME).write_text(text, encoding="utf-8")


@dataclass(frozen=True, slots=True)
class StoredScheme:
    """The scheme in which a folder's weights are held, None for none, and its form on disk."""

    scheme: Scheme | None
    is_on_disk: bool  # the folder's weights are quantized already, in this scheme
    published: PublishedFormat | None = None  # the format of a folder that others quantized


def resolve_scheme(folder: Path, wanted: str = "none") -> StoredScheme:
    """Return the scheme in which the weights of a folder are to be held.

    `wanted` is the setting; a quantized folder needs none.

    Raises:
        ConfigError: the setting contradicts the folder.
        CheckpointError: quantization.json is unreadable or of another version, or others quantized
            the folder in a way that is not read.
    """
    if not (folder / FILE_NAME).is_file():
        published = find_published_format(folder)
        if published == "ModelOpt FP8":
            if wanted not in ("none", "fp8"):
                raise ConfigError(
                    f"worker.quantization is {wanted!r}, but the weights in {folder} are float8 "
                    "already; leave the setting out, or name the original checkpoint"
                )
            return StoredScheme(SCHEMES["fp8"], is_on_disk=True, published=published)
        return StoredScheme(SCHEMES.get(wanted), is_on_disk=False, published=published)
    fields = read_json(folder / FILE_NAME, CheckpointError)
    name, version = fields.get("scheme"), fields.get("format")
    scheme = SCHEMES.get(str(name))
    if scheme is None or version != FORMAT or fields.get("group") != scheme.group:
        raise CheckpointError(
            f"{folder / FILE_NAME} has scheme {name!r} in groups of {fields.get('group')}, "
            f"format {version}; this version reads {', '.join(SCHEMES)} in format {FORMAT}: "
            "quantize the original checkpoint again"
        )
    if wanted not in ("none", scheme.name):
        raise ConfigError(
            f"worker.quantization is {wanted!r}, but the weights in {folder} are {scheme.name} "
            "already; leave the setting out, or name the original checkpoint"
        )
    return StoredScheme(scheme, is_on_disk=True)
