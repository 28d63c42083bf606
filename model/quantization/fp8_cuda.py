"""FP8 matrix products on the float8 units of a GPU.

No test without a GPU runs this file: `make test-gpu` compares it with the CPU path.
"""

import torch
from torch import Tensor

_LARGEST = 448.0  # of float8_e4m3fn
_FIRST_CAPABILITY = (8, 9)  # Ada; earlier GPUs have no float8 units


def is_usable(x_TI: Tensor, weight: Tensor) -> bool:
    """Return whether a product of these can be done in float8: it needs sides that 16 divides."""
    return (
        x_TI.is_cuda
        and x_TI.dtype == torch.bfloat16
        and weight.dtype == torch.float8_e4m3fn
        and torch.cuda.get_device_capability(x_TI.device) >= _FIRST_CAPABILITY
        and all(side % 16 == 0 for side in weight.shape)
    )


def linear(x_BI: Tensor, weight_OI: Tensor, scale_O1: Tensor) -> Tensor:
    """Return x times the transposed weight, both in float8 with a scale per row.

    Shapes: x_BI with any leading axes, weight_OI float8, scale_O1 float32 -> x_BO bfloat16.
    """
    x_TI = x_BI.flatten(0, -2)
    scale_T1 = (x_TI.abs().amax(dim=-1, keepdim=True).float() / _LARGEST).clamp_min(1e-12)
    fp8_TI = (x_TI / scale_T1).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)
    out_TO = torch._scaled_mm(
        fp8_TI,
        weight_OI.t(),
        scale_a=scale_T1,
        scale_b=scale_O1.t(),
        out_dtype=torch.bfloat16,
    )
    return out_TO.unflatten(0, x_BI.shape[:-1])
