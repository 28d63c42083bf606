"""How a matrix is rounded: small integers or small floats, and a scale for each group of columns.

A scale belongs to neighbouring columns of one row, so that ranks can cut a matrix by rows or, at
group borders, by columns and still hold what a single process holds.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from model.config import read_json
from model.errors import CheckpointError, ConfigError

SchemeName = Literal["fp8", "int8", "int4"]
FILE_NAME = "quantization.json"
FORMAT = 1
SCALE_SUFFIX = "_scale"

# Shrinkages of the largest value that a group of 4-bit integers tries out: to clip the largest a
# little can cost less than to spread sixteen levels wide.
_INT4_SHRINKAGES = tuple(1.0 - 0.05 * i for i in range(8))


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to round. `group` is the number of columns that share a scale, 0 for a whole row."""

    name: SchemeName
    group: int
    dtype: torch.dtype
    lowest: float  # of the values that are stored
    highest: float
    scale_dtype: torch.dtype

    def packed(self, columns: int) -> int:
        """Return how many stored elements hold so many columns."""
        return columns // 2 if self.name == "int4" else columns

    def group_of(self, columns: int) -> int:
        """Return how many columns of a matrix share a scale: the group, or what divides both."""
        return math.gcd(columns, self.group) if self.group else columns


SCHEMES: dict[str, Scheme] = {
    "int8": Scheme("int8", 128, torch.int8, -127.0, 127.0, torch.bfloat16),
    # float8 scales are a row's own, as the matrix units of a GPU want them.
    "fp8": Scheme("fp8", 0, torch.float8_e4m3fn, -448.0, 448.0, torch.float32),
    "int4": Scheme("int4", 32, torch.uint8, -8.0, 7.0, torch.bfloat16),
}


def scheme_of_dtype(dtype: torch.dtype) -> Scheme:
    """Return the scheme whose rounded values have this dtype."""
    return next(scheme for scheme in SCHEMES.values() if scheme.dtype == dtype)


def quantize(weight_OI: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return a matrix rounded to nearest, and its scales.

    Shapes: weight_OI of any float dtype -> packed_OZ, scale_OG.
    """
    group = scheme.group_of(weight_OI.shape[-1])
    weight_OGZ = weight_OI.float().unflatten(-1, (-1, group))
    if scheme.name == "int4":
        scale_OG = _search_scale(weight_OGZ, scheme)
    else:
        scale_OG = _as_scale(weight_OGZ.abs().amax(dim=-1) / scheme.highest, scheme)
    rounded_OI = _round(weight_OGZ, scale_OG, scheme).flatten(-2)
    if scheme.name == "int4":
        low, high = (
            (rounded_OI.to(torch.int8) + 8).to(torch.uint8).unflatten(-1, (-1, 2)).unbind(-1)
        )
        return low | (high << 4), scale_OG
    return rounded_OI.to(scheme.dtype), scale_OG


def dequantize(packed_OZ: Tensor, scale_OG: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the matrix that packed values and scales stand for.

    Leading axes, such as one of experts, are kept. Shapes: packed_OZ, scale_OG -> weight_OI.
    """
    if packed_OZ.dtype == torch.uint8:
        values_OI = torch.stack((packed_OZ & 15, packed_OZ >> 4), dim=-1).flatten(-2).to(dtype) - 8
    else:
        values_OI = packed_OZ.to(dtype)
    groups = scale_OG.shape[-1]
    if groups == 1:
        return values_OI * scale_OG.to(dtype)
    return (values_OI.unflatten(-1, (groups, -1)) * scale_OG.to(dtype).unsqueeze(-1)).flatten(-2)


def _round(weight_OGZ: Tensor, scale_OG: Tensor, scheme: Scheme) -> Tensor:
    """Return weights in units of their scales, float32, at values that the dtype can hold."""
    units_OGZ = weight_OGZ / scale_OG.float().unsqueeze(-1)
    units_OGZ = units_OGZ.clamp(scheme.lowest, scheme.highest)
    return units_OGZ if scheme.name == "fp8" else units_OGZ.round()


def _as_scale(scale_OG: Tensor, scheme: Scheme) -> Tensor:
    """Return scales in their dtype, before anything is rounded by them; never 0."""
    smallest = torch.finfo(torch.bfloat16).tiny
    scale_OG = torch.where(scale_OG.abs() < smallest, smallest, scale_OG)
    return scale_OG.to(scheme.scale_dtype)


def _search_scale(weight_OGZ: Tensor, scheme: Scheme) -> Tensor:
    """Return for each group the scale, of a few, that leaves the smallest squared error.

    The levels reach one further down than up, so the scale has the sign that puts the value
    furthest from zero there.
    """
    furthest = weight_OGZ.abs().argmax(dim=-1, keepdim=True)
    scale_OG = weight_OGZ.gather(-1, furthest).squeeze(-1) / scheme.lowest
    best_OG = _as_scale(scale_OG, scheme)
    least_OG = torch.full_like(scale_OG, torch.inf)
    for shrinkage in _INT4_SHRINKAGES:
        tried_OG = _as_scale(scale_OG * shrinkage, scheme)
        restored_OGZ = _round(weight_OGZ, tried_OG, scheme) * tried_OG.float().unsqueeze(-1)
        error_OG = (restored_OGZ - weight_OGZ).square().sum(dim=-1)
        best_OG = torch.where(error_OG < least_OG, tried_OG, best_OG)
        least_OG = torch.minimum(error_OG, least_OG)
    return best_OG


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """What `quantization.json` says of a checkpoint folder."""

    scheme: SchemeName
    group: int
    source: str  # fingerprint of the checkpoint that was quantized
    format: int = FORMAT


def write_quantization_config(folder: Path, facts: QuantizationConfig) -> None:
    """Write `quantization.json` into a folder."""
    text = json.dumps(asdict(facts), indent=2) + "\n"
    (folder / FILE_NAME).write_text(text, encoding="utf-8")


def resolve_scheme(folder: Path, wanted: str = "none") -> tuple[Scheme | None, bool]:
    """Return how the weights of a folder are to be held, and whether they lie there like that.

    `wanted` is the setting; a quantized folder needs none.

    Raises:
        ConfigError: the setting contradicts the folder.
        CheckpointError: quantization.json is unreadable or of another version.
    """
    if not (folder / FILE_NAME).is_file():
        return SCHEMES.get(wanted), False
    fields = read_json(folder / FILE_NAME, CheckpointError)
    name, version = fields.get("scheme"), fields.get("format")
    scheme = SCHEMES.get(str(name))
    if scheme is None or version != FORMAT or fields.get("group") != scheme.group:
        raise CheckpointError(
            f"{folder / FILE_NAME} tells of scheme {name!r} in groups of {fields.get('group')}, "
            f"format {version}; this version reads {', '.join(SCHEMES)} in format {FORMAT}: "
            "quantize the original checkpoint again"
        )
    if wanted not in ("none", scheme.name):
        raise ConfigError(
            f"worker.quantization is {wanted!r}, but the weights in {folder} are {scheme.name} "
            "already; leave the setting out, or name the original checkpoint"
        )
    return scheme, True
