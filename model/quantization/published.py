"""Quantized checkpoints that others publish: which formats are read, and their dequantization.

ModelOpt's FP8 has float8 weights with a `weight_scale` for a matrix or for each row. bitsandbytes
has int8 weights with the largest value of each row (`SCB`), or 4-bit indices into a table (NF4)
with the largest value of each block (`absmax`), which may be quantized itself (`nested_...`).

Source: hf_quant_config.json as ModelOpt's unified export writes it; bitsandbytes 0.50,
functional.py (QuantState) and nn/modules.py.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from model.config_file import read_json
from model.errors import CheckpointError

log = logging.getLogger(__name__)

PublishedFormat = Literal["ModelOpt FP8", "bitsandbytes INT8", "bitsandbytes NF4"]

MODELOPT_FILE = "hf_quant_config.json"
# Source: vLLM's docs/features/quantization/modelopt.md: a scale for each matrix, for each row.
_MODELOPT_ALGORITHMS = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN")
NF4_STATE = "quant_state.bitsandbytes__nf4"


def find_published_format(folder: Path) -> PublishedFormat | None:
    """Return the format of a folder whose weights someone else quantized, or None.

    Raises:
        CheckpointError: it is none of those that are read; the message says what would work.
    """
    fields: Mapping[str, Any] = {}
    if (folder / "config.json").is_file():
        fields = read_json(folder / "config.json", CheckpointError).get("quantization_config") or {}
    method = str(fields.get("quant_method", "")).lower()
    if (folder / MODELOPT_FILE).is_file():
        method = "modelopt"
        fields = read_json(folder / MODELOPT_FILE, CheckpointError)
    elif not fields:
        return None
    fields = fields.get("quantization", fields)
    if method.startswith("modelopt"):
        algorithm = str(fields.get("quant_algo")).upper()
        if algorithm in _MODELOPT_ALGORITHMS:
            return "ModelOpt FP8"
        raise _refusal(folder, f"ModelOpt with quant_algo {algorithm}")
    if method == "bitsandbytes":
        if fields.get("load_in_8bit"):
            return "bitsandbytes INT8"
        if fields.get("bnb_4bit_quant_type") == "nf4":
            return "bitsandbytes NF4"
        raise _refusal(folder, f"bitsandbytes with {fields.get('bnb_4bit_quant_type')}")
    raise _refusal(folder, method or "an unnamed method")


def _refusal(folder: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"{folder} holds weights quantized by {name}, which this server does not read; it reads "
        "ModelOpt FP8, bitsandbytes INT8 and NF4, and folders that `hyimage quantize` wrote: name "
        "the original checkpoint, and let worker.quantization quantize it to fp8, int8 or int4"
    )


def dequantize_float8(weight_OI: Tensor, scale: Tensor) -> Tensor:
    """Return float8 weights times their scale, of the matrix or of each row; float32."""
    return weight_OI.float() * (scale.float() if scale.numel() == 1 else scale.float().view(-1, 1))


def dequantize_int8(weight_OI: Tensor, largest_O: Tensor) -> Tensor:
    """Return int8 weights in units of a 127th of the largest value of their row; float32."""
    return weight_OI.float() * (largest_O.float() * (1 / 127)).view(-1, 1)


def dequantize_nf4(packed: Tensor, companions: Mapping[str, Tensor], state: Tensor) -> Tensor:
    """Return the matrix of indices into a table, two in a byte, the first one high; float32.

    `state` is the JSON in `quant_state`, in the host's memory; companions are the other tensors.

    Raises:
        ValueError: `state` is not what it should be.
    """
    fields = json.loads(bytes(state.tolist()))
    largest = companions["absmax"]
    if "nested_absmax" in companions:
        levels = companions["nested_quant_map"].float()[largest.long()]
        largest = _scale_blocks(
            levels, companions["nested_absmax"].float(), int(fields["nested_blocksize"])
        ) + float(fields["nested_offset"])
    packed = packed.flatten()
    indices = torch.stack((packed >> 4, packed & 15), dim=-1).flatten()
    values = companions["quant_map"].float()[indices.long()]
    matrix = _scale_blocks(values, largest.float(), int(fields["blocksize"]))
    return matrix.view(tuple(int(side) for side in fields["shape"]))


def _scale_blocks(values: Tensor, scales: Tensor, block: int) -> Tensor:
    """Return flat values times the scale of their block; the last block may be short."""
    whole = len(values) // block * block
    scaled = (values[:whole].unflatten(0, (-1, block)) * scales[: whole // block, None]).flatten()
    if whole == len(values):
        return scaled
    rest = values[whole:] * scales[whole // block]
    return torch.cat((scaled, rest))
