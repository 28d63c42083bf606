"""FP8 matrix products on the float8 units of a GPU.

No kernel of this file runs without a GPU: shapes and layouts are checked by `tests/device`, numbers
by `make test-gpu`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from model.fused import quantize_rows
from model.grouped import GROUPED_CAPABILITIES

FIRST_CAPABILITY = (8, 9)  # Ada; earlier GPUs have no float8 units
_planned: ContextVar[tuple[int, int]] = ContextVar("planned", default=GROUPED_CAPABILITIES[0])


@contextmanager
def planned_for(capability: tuple[int, int]) -> Iterator[None]:
    """Let meta tensors count for devices of a compute capability within the block."""
    token = _planned.set(capability)
    try:
        yield
    finally:
        _planned.reset(token)


def is_usable(x: Tensor, weight: Tensor) -> bool:
    """Return whether a product of these can be done in float8: it needs sides that 16 divides."""
    return _has_form(x, weight) and _capability(x) >= FIRST_CAPABILITY


def is_grouped_usable(x: Tensor, weight_EOI: Tensor) -> bool:
    """Return whether grouped products of these can be done in float8."""
    return _has_form(x, weight_EOI) and _capability(x) in GROUPED_CAPABILITIES


def linear(x_BI: Tensor, weight_OI: Tensor, scale_O1: Tensor) -> Tensor:
    """Return x times the transposed weight, both in float8 with a scale per row.

    Shapes: x_BI with any leading axes, weight_OI float8, scale_O1 float32 -> x_BO bfloat16.
    """
    values_TI, scale_T1 = quantize_rows(x_BI.flatten(0, -2))
    out_TO = torch._scaled_mm(
        values_TI, weight_OI.t(), scale_a=scale_T1, scale_b=scale_O1.t(), out_dtype=torch.bfloat16
    )
    return out_TO.unflatten(0, x_BI.shape[:-1])


def grouped_linear(
    values: Tensor, scale: Tensor, weight_EOI: Tensor, scale_EO1: Tensor, ends_E: Tensor
) -> Tensor:
    """Return rows times the transposed weights of their experts, both in float8.

    Shapes: values [rows, I] float8 and scale [rows, 1] float32, sorted by expert;
    weight_EOI float8, scale_EO1 float32; ends_E int32 -> [rows, O] bfloat16.
    """
    return torch._scaled_grouped_mm(
        values,
        weight_EOI.transpose(1, 2),
        scale_a=scale.squeeze(-1),
        scale_b=scale_EO1.squeeze(-1),
        offs=ends_E,
        out_dtype=torch.bfloat16,
    )


def _has_form(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == torch.bfloat16
        and weight.dtype == torch.float8_e4m3fn
        and all(side % 16 == 0 for side in weight.shape[-2:])
    )


def _capability(x: Tensor) -> tuple[int, int]:
    """Return the compute capability of a tensor's device; plans on meta count for a card's."""
    if x.is_meta:
        return _planned.get()
    return torch.cuda.get_device_capability(x.device) if x.is_cuda else (0, 0)
