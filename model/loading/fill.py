"""One stored tensor to its place in memory: whole or a rank's part, as it is or rounded."""

from collections.abc import Mapping

import torch
from torch import Tensor

from model.errors import CheckpointError
from model.loading.names import Target
from model.loading.safetensors_file import SafetensorsFile, StoredTensor
from model.quantization.scheme import quantize, scheme_of_dtype


def fill_one(
    file: SafetensorsFile,
    stored: StoredTensor,
    target: Target,
    parameters: Mapping[str, Tensor],
    scratch: Tensor,
) -> int:
    """Read a tensor to its place, rounding it where the model holds it rounded; return its bytes.

    Raises:
        CheckpointError: the file cannot be read, or the values are not finite.
    """
    view, scale_view = target.view(parameters), target.scale_view(parameters)
    is_rounded_here = scale_view is not None and target.dtype is None
    into = view
    if is_rounded_here:
        shape = stored.shape if target.part is None else target.part.shape(stored.shape)
        into = torch.empty(shape, dtype=stored.dtype, device=view.device)
    if target.part is None:
        file.read_into(stored, into, scratch)
    else:
        file.read_part_into(stored, target.part, into, scratch)
    if not _is_finite(into):
        raise CheckpointError(
            f"{file.path}: tensor {stored.name} holds values that are not finite as "
            f"{into.dtype}; the shard is damaged, or the dtype is too narrow for it"
        )
    if not is_rounded_here:
        return view.nbytes
    assert scale_view is not None
    packed, scale = quantize(into, scheme_of_dtype(view.dtype))
    view.copy_(packed)
    scale_view.copy_(scale)
    return view.nbytes + scale_view.nbytes


def _is_finite(values: Tensor) -> bool:
    if values.dtype == torch.float8_e4m3fn:  # knows nan alone, as 0x7f and 0xff
        return not bool(((values.view(torch.uint8) & 0x7F) == 0x7F).any())
    return bool(values.isfinite().all())
