"""Rules of CUDA's operations: which wait for the host, and which layouts their kernels take."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

HOPPER = (9, 0)
# Compute capabilities with a fast kernel for grouped products of bfloat16.
# Source: torch 2.13, aten/src/ATen/native/cuda/GroupedBlas.cpp.
GROUPED_FAST = (HOPPER, (10, 0))


class LayoutError(RuntimeError):
    """A CUDA kernel would refuse the layout of its arguments."""


INDEXING = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default}
DATA_DEPENDENT = {
    aten.nonzero.default,
    aten.unique_consecutive.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.masked_select.default,
    aten.bincount.default,
}
ALLOCATING = {
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
    aten.detach.default,
    aten._unsafe_view.default,
    aten.lift_fresh.default,
}


def is_view(func: Any) -> bool:
    """Return whether an operation returns its argument's memory, unchanged."""
    returned = func._schema.returns
    return bool(returned) and all(
        r.alias_info is not None and not r.alias_info.is_write for r in returned
    )


def is_kernel(func: Any) -> bool:
    """Return whether an operation runs on the device: views and allocations do not."""
    return not is_view(func) and func not in ALLOCATING


def is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def check_grouped(x: Tensor, weight: Tensor, ends: Tensor | None) -> None:
    """Check the layout of a grouped product.

    Source: torch 2.13, aten/src/ATen/native/GroupedMMUtils.h: strides in steps of 16 bytes.
    """
    for name, matrix in (("a", x), ("b", weight)):
        step = 16 // matrix.element_size()
        rows, columns = matrix.stride()[-2:]
        is_row_major = columns == 1 and rows >= max(1, matrix.shape[-1]) and not rows % step
        is_column_major = rows == 1 and columns >= max(1, matrix.shape[-2]) and not columns % step
        if matrix.data_ptr() % 16 or not (is_row_major or is_column_major):
            raise LayoutError(
                f"grouped_mm: strides {matrix.stride()} of {name} {tuple(matrix.shape)}"
            )
    if ends is None or ends.dtype != torch.int32:
        raise LayoutError("grouped_mm: offsets must be int32")


def scaled_product(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias: Tensor | None = None,
    scale_result: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    use_fast_accum: bool = False,
) -> Tensor:
    """Return a float8 product with a scale for each row of `a` and column of `b`.

    Source: torch 2.13, aten/src/ATen/native/cuda/ScaledBlas.cpp: row-wise scaling.
    """
    is_float8 = a.dtype == b.dtype == torch.float8_e4m3fn
    has_layout = a.stride(-1) == 1 and b.stride(0) == 1
    has_sides = not a.shape[1] % 16 and not b.shape[1] % 16
    has_scales = (
        scale_a.shape == (a.shape[0], 1)
        and scale_b.shape == (1, b.shape[1])
        and scale_a.is_contiguous()
        and scale_b.is_contiguous()
        and scale_a.dtype == scale_b.dtype == torch.float32
    )
    if not (is_float8 and has_layout and has_sides and has_scales):
        raise LayoutError(
            f"_scaled_mm: {a.dtype} {tuple(a.shape)} {a.stride()} by {tuple(b.shape)} {b.stride()}"
        )
    return ((a.float() @ b.float()) * scale_a * scale_b).to(out_dtype)


def scaled_grouped_product(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    scale_result: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    use_fast_accum: bool = False,
) -> Tensor:
    """Return float8 products of rows with their group's matrix, scales for each row and column.

    Source: torch 2.13, aten/src/ATen/native/cuda/ScaledGroupMM.cu: row-wise scaling.
    """
    check_grouped(a, b, offs)
    assert offs is not None
    is_float8 = a.dtype == b.dtype == torch.float8_e4m3fn
    has_layout = a.stride(-1) == 1 and b.stride(-2) == 1
    has_scales = (
        scale_a.shape == (a.shape[0],)
        and scale_b.shape == (b.shape[0], b.shape[2])
        and scale_a.is_contiguous()
        and scale_b.is_contiguous()
        and scale_a.dtype == scale_b.dtype == torch.float32
    )
    if not (is_float8 and has_layout and has_scales):
        raise LayoutError(
            f"_scaled_grouped_mm: {a.dtype} {tuple(a.shape)} by {tuple(b.shape)} {b.stride()}, "
            f"scales {tuple(scale_a.shape)} and {tuple(scale_b.shape)}"
        )
    out = a.new_zeros(a.shape[0], b.shape[2], dtype=torch.float32)
    start = 0
    for group, end in enumerate(offs.tolist()):
        out[start:end] = a[start:end].float() @ b[group].float() * scale_b[group]
        start = end
    return (out * scale_a.unsqueeze(1)).to(out_dtype)


# Float8 products, which a CPU computes otherwise or not at all.
PRODUCTS: Mapping[Any, Callable[..., Tensor]] = {
    aten._scaled_mm.default: scaled_product,
    aten._scaled_grouped_mm.default: scaled_grouped_product,
}
