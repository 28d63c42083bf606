"""Reading of one stored tensor into its parameter: whole or a shard, as it is or quantized."""

import threading
from collections.abc import Mapping

import torch
from torch import Tensor

from model.errors import CheckpointError
from model.loading.safetensors_file import SafetensorsFile, StoredTensor
from model.loading.weight_map import ParameterSlot
from model.quantization.scheme import quantize, scheme_of_dtype


class ReadBuffer(threading.local):
    """Memory for a tensor as it is stored, reused for the next one; one for each thread."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def of(self, num_bytes: int) -> Tensor:
        """Return at least `num_bytes` bytes; only those that are written take memory."""
        if self._memory.numel() < num_bytes:
            self._memory = torch.empty(num_bytes, dtype=torch.uint8)
        return self._memory


def load_tensor(
    file: SafetensorsFile,
    stored: StoredTensor,
    slot: ParameterSlot,
    parameters: Mapping[str, Tensor],
    buffer: ReadBuffer,
) -> int:
    """Read a tensor into its parameter, quantizing it where that is quantized; return its bytes.

    Raises:
        CheckpointError: the file cannot be read, or the values are not finite.
    """
    values = read_tensor(file, stored, slot, parameters, buffer)
    return finalize_tensor(file, stored, slot, parameters, values)


def read_tensor(
    file: SafetensorsFile,
    stored: StoredTensor,
    slot: ParameterSlot,
    parameters: Mapping[str, Tensor],
    buffer: ReadBuffer,
) -> Tensor:
    """Read a tensor into its parameter or, if it is to be quantized, into memory of its own.

    Raises:
        CheckpointError: the file cannot be read.
    """
    values = slot.view(parameters)
    if _is_quantized_on_load(slot, parameters):
        values = torch.empty(slot.local_shape, dtype=stored.dtype, device=values.device)
    if slot.shard is None:
        file.read_into(stored, values, buffer.of(stored.num_bytes))
    else:
        file.read_shard_into(stored, slot.shard, values, buffer.of(stored.num_bytes))
    return values


def finalize_tensor(
    file: SafetensorsFile,
    stored: StoredTensor,
    slot: ParameterSlot,
    parameters: Mapping[str, Tensor],
    values: Tensor,
) -> int:
    """Check the values that were read, quantize them if the parameter is; return the bytes held.

    Raises:
        CheckpointError: the values are not finite.
    """
    if not _is_finite(values):
        raise CheckpointError(
            f"{file.path}: tensor {stored.name} holds values that are not finite as "
            f"{values.dtype}; the shard is damaged, or the dtype is too narrow for it"
        )
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


def _is_finite(values: Tensor) -> bool:
    if values.dtype == torch.float8_e4m3fn:  # has no infinity; nan is 0x7f or 0xff
        return not bool(((values.view(torch.uint8) & 0x7F) == 0x7F).any())
    if not values.is_floating_point():
        return True
    # Forty times as fast as `isfinite` on bfloat16; nan and infinity both reach an extreme.
    return all(bool(extreme.isfinite()) for extreme in values.aminmax())
