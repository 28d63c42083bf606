"""One stored tensor to its place in memory: whole or a rank's part, as it is or rounded."""

import threading
from collections.abc import Mapping

import torch
from torch import Tensor

from model.errors import CheckpointError
from model.loading.safetensors_file import SafetensorsFile, StoredTensor
from model.loading.weight_map import ParameterSlot
from model.quantization.scheme import quantize, scheme_of_dtype


class ReadBuffer(threading.local):
    """Memory for a tensor as it is stored, kept for the next one; each thread has its own."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def of(self, num_bytes: int) -> Tensor:
        """Return at least so many bytes; only those that are written take memory."""
        if self._memory.numel() < num_bytes:
            self._memory = torch.empty(num_bytes, dtype=torch.uint8)
        return self._memory


def load_tensor(
    file: SafetensorsFile,
    stored: StoredTensor,
    target: ParameterSlot,
    parameters: Mapping[str, Tensor],
    scratch: ReadBuffer,
) -> int:
    """Read a tensor to its place, rounding it where the model holds it rounded; return its bytes.

    Raises:
        CheckpointError: the file cannot be read, or the values are not finite.
    """
    values = read_tensor(file, stored, target, parameters, scratch)
    return finalize_tensor(file, stored, target, parameters, values)


def read_tensor(
    file: SafetensorsFile,
    stored: StoredTensor,
    target: ParameterSlot,
    parameters: Mapping[str, Tensor],
    scratch: ReadBuffer,
) -> Tensor:
    """Read a tensor, into its place or, if it is still to be rounded, beside it.

    Raises:
        CheckpointError: the file cannot be read.
    """
    values = target.view(parameters)
    if _is_quantized_on_load(target, parameters):
        shape = stored.shape if target.part is None else target.part.shape(stored.shape)
        values = torch.empty(shape, dtype=stored.dtype, device=values.device)
    if target.part is None:
        file.read_into(stored, values, scratch.of(stored.num_bytes))
    else:
        file.read_part_into(stored, target.part, values, scratch.of(stored.num_bytes))
    return values


def finalize_tensor(
    file: SafetensorsFile,
    stored: StoredTensor,
    target: ParameterSlot,
    parameters: Mapping[str, Tensor],
    values: Tensor,
) -> int:
    """Check what was read, and round it if it is held rounded; return the bytes it takes.

    Raises:
        CheckpointError: the values are not finite.
    """
    if not _is_finite(values):
        raise CheckpointError(
            f"{file.path}: tensor {stored.name} holds values that are not finite as "
            f"{values.dtype}; the shard is damaged, or the dtype is too narrow for it"
        )
    if not _is_quantized_on_load(target, parameters):
        return values.nbytes
    view, scale_view = target.view(parameters), target.scale_view(parameters)
    assert scale_view is not None
    packed, scale = quantize(values, scheme_of_dtype(view.dtype))
    view.copy_(packed)
    scale_view.copy_(scale)
    return view.nbytes + scale_view.nbytes


def _is_quantized_on_load(target: ParameterSlot, parameters: Mapping[str, Tensor]) -> bool:
    """Return whether a tensor lies on disk as it was, and is held rounded."""
    return target.dtype is None and target.scale_view(parameters) is not None


def _is_finite(values: Tensor) -> bool:
    if values.dtype == torch.float8_e4m3fn:  # knows nan alone, as 0x7f and 0xff
        return not bool(((values.view(torch.uint8) & 0x7F) == 0x7F).any())
    if not values.is_floating_point():
        return True
    # Forty times as fast as `isfinite` on bfloat16; nan and infinity both reach an extreme.
    return all(bool(extreme.isfinite()) for extreme in values.aminmax())
