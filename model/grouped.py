"""Grouped products: rows sorted by expert times their experts' matrices.

torch's product is the reference. It has a fast kernel for bfloat16 on some cards alone; elsewhere
it multiplies expert by expert and waits for the device. There the Triton kernel of
`model/grouped_triton.py` takes its place, on devices where it was found to agree with torch's.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Compute capabilities for which torch has fast grouped products, of bfloat16 and of float8 with a
# scale for each row.
# Source: torch 2.13, aten/src/ATen/native/cuda/GroupedBlas.cpp.
GROUPED_CAPABILITIES = ((9, 0), (10, 0))
FIRST_TRITON_CAPABILITY = (8, 0)
TRITON_DTYPES = (torch.bfloat16, torch.float16)

# Both kernels add up in float32 and round once.
LARGEST_DIFFERENCE = 0.01

Product = Callable[[Tensor, Tensor, Tensor], Tensor]

_others: dict[torch.device, Product] = {}  # products that take the place of torch's


def grouped_product(rows: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """Return rows times the transposed weights of their experts.

    Shapes: rows [rows, I] sorted by expert, weight_EOI, ends_E int32 -> [rows, O]. Rows after the
    last end, of other ranks' experts, hold whatever was in memory.
    """
    other = _others.get(rows.device)
    if other is not None and _takes(rows, weight_EOI):
        return other(rows, weight_EOI, ends_E)
    return F.grouped_mm(rows, weight_EOI.transpose(1, 2), offs=ends_E)


def is_fast(dtype: torch.dtype, capability: tuple[int, int]) -> bool:
    """Return whether torch's own product is fast, and does not wait for the device."""
    return dtype == torch.bfloat16 and capability in GROUPED_CAPABILITIES


def use_torch() -> None:
    """Use torch's product on every device from now on."""
    _others.clear()


def enable_triton(device: torch.device, dtype: torch.dtype, product: Product | None = None) -> str:
    """Use the Triton kernel, or another product, on a device from now on; or return why not.

    It must agree with torch's product there first, at sizes that no tile divides.
    """
    if dtype not in TRITON_DTYPES:
        return f"it takes no {str(dtype).removeprefix('torch.')}"
    if torch.cuda.get_device_capability(device) < FIRST_TRITON_CAPABILITY:
        return "the device is older than compute capability 8.0"
    if product is None:
        from model import grouped_triton

        product = grouped_triton.grouped_product
    ends_E = torch.tensor([70, 70, 71, 300, 317], dtype=torch.int32, device=device)
    rows = torch.randn(317, 272, device=device).to(dtype)
    weight_EOI = torch.randn(5, 200, 272, device=device).to(dtype)
    try:
        ours = product(rows, weight_EOI, ends_E).float()
    except Exception as e:  # noqa: BLE001 -- whatever it is, torch's product still works
        return f"{type(e).__name__}: {e}"[:400]
    reference = F.grouped_mm(rows, weight_EOI.transpose(1, 2), offs=ends_E).float()
    difference = float((ours - reference).norm() / reference.norm())
    if not difference <= LARGEST_DIFFERENCE:
        return f"it is {difference:.2g} off torch's product"
    _others[rows.device] = product  # with its number, which `device` may lack
    return ""


def has_triton(device: torch.device) -> bool:
    """Return whether the Triton kernel is used on a device, given with its number."""
    return device in _others


def _takes(rows: Tensor, weight_EOI: Tensor) -> bool:
    return (
        rows.dtype == weight_EOI.dtype
        and rows.dtype in TRITON_DTYPES
        and weight_EOI.is_contiguous()
    )
