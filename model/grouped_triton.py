"""Grouped products in Triton, for devices without a kernel of torch's own: sm80, sm89, sm120.

Rows are sorted by expert, and the number of each expert's rows is known to the device alone. So
more tiles are launched than can be needed, each finds its expert from the ends of the groups, and
those beyond the last return at once: the host never waits. Triton's interpreter runs the same
kernel on a CPU, where a test compares it with torch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_COLUMNS = 128
TILES_THAT_SHARE = 8  # tiles of rows that follow one another and read the same columns


@triton.jit  # type: ignore[untyped-decorator]
def product_kernel(  # type: ignore[no-untyped-def]
    rows_ptr,
    weight_ptr,
    ends_ptr,
    out_ptr,
    num_experts,
    width,
    num_columns,
    num_row_tiles,
    EXPERTS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    TILE_DEPTH: tl.constexpr,
    SHARED_TILES: tl.constexpr,
    IS_INTERPRETED: tl.constexpr,
):
    """Multiply one tile of rows of one expert by one tile of its columns."""
    program = tl.program_id(0)
    num_column_tiles = tl.cdiv(num_columns, TILE_COLUMNS)
    in_group = SHARED_TILES * num_column_tiles
    first_tile = program // in_group * SHARED_TILES
    group_tiles = tl.minimum(num_row_tiles - first_tile, SHARED_TILES)
    row_tile = first_tile + program % in_group % group_tiles
    column_tile = program % in_group // group_tiles

    expert_ids = tl.arange(0, EXPERTS)
    is_expert = expert_ids < num_experts
    ends = tl.load(ends_ptr + expert_ids, mask=is_expert, other=0)
    starts = tl.load(ends_ptr + expert_ids - 1, mask=is_expert & (expert_ids > 0), other=0)
    tiles = tl.where(is_expert, tl.cdiv(ends - starts, TILE_ROWS), 0)
    tiles_up_to = tl.cumsum(tiles, 0)
    expert = tl.sum(tl.where(is_expert & (tiles_up_to <= row_tile), 1, 0))
    if expert >= num_experts:
        return
    is_own = expert_ids == expert
    tile_of_expert = row_tile - tl.sum(tl.where(is_own, tiles_up_to - tiles, 0))
    end = tl.sum(tl.where(is_own, ends, 0))
    start = tl.sum(tl.where(is_own, starts, 0)) + tile_of_expert * TILE_ROWS

    row_ids = start + tl.arange(0, TILE_ROWS)
    column_ids = column_tile * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)
    depth_ids = tl.arange(0, TILE_DEPTH)
    is_row = row_ids < end
    is_column = column_ids < num_columns
    # 64 bits: the rows of an image times the width pass 2^31, and so do all experts' weights.
    row_ptrs = rows_ptr + row_ids.to(tl.int64)[:, None] * width + depth_ids[None, :]
    column_of_all = expert.to(tl.int64) * num_columns + column_ids
    column_ptrs = weight_ptr + column_of_all[None, :] * width + depth_ids[:, None]
    total = tl.zeros((TILE_ROWS, TILE_COLUMNS), dtype=tl.float32)
    for depth in range(0, width, TILE_DEPTH):
        is_deep = depth_ids < width - depth
        rows = tl.load(row_ptrs, mask=is_row[:, None] & is_deep[None, :], other=0.0)
        columns = tl.load(column_ptrs, mask=is_column[None, :] & is_deep[:, None], other=0.0)
        if IS_INTERPRETED:  # the interpreter would multiply bfloat16's bits as integers
            rows, columns = rows.to(tl.float32), columns.to(tl.float32)
        total = tl.dot(rows, columns, total)
        row_ptrs += TILE_DEPTH
        column_ptrs += TILE_DEPTH
    out_ptrs = out_ptr + row_ids.to(tl.int64)[:, None] * num_columns + column_ids[None, :]
    tl.store(
        out_ptrs, total.to(out_ptr.dtype.element_ty), mask=is_row[:, None] & is_column[None, :]
    )


def choose_tile_rows(num_rows: int, num_experts: int) -> int:
    """Return the rows of a tile: few where an expert has few, so that little is multiplied by 0."""
    per_expert = num_rows / num_experts
    return 16 if per_expert <= 16 else 64 if per_expert <= 96 else 128


def tile_constants(tile_rows: int, num_experts: int) -> dict[str, int]:
    """Return the constants of the kernel for a size of tiles."""
    return {
        "EXPERTS": triton.next_power_of_2(num_experts),
        "TILE_ROWS": tile_rows,
        "TILE_COLUMNS": TILE_COLUMNS,
        "TILE_DEPTH": 32,
        "SHARED_TILES": TILES_THAT_SHARE,
    }


def launch_options(tile_rows: int) -> dict[str, int]:
    """Return warps and stages: four stages of a tile of 128 take 49 kB of shared memory."""
    return {"num_warps": 8 if tile_rows == 128 else 4, "num_stages": 4}


def grouped_product(rows: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """Return rows times the transposed weights of their experts.

    Shapes: rows [rows, I] sorted by expert, weight_EOI, of one dtype, the weights
    contiguous; ends_E int32 -> [rows, O]. Rows after the last end hold whatever was in memory.
    """
    num_experts, num_columns, width = weight_EOI.shape
    out = rows.new_empty(len(rows), num_columns)
    tile_rows = choose_tile_rows(len(rows), num_experts)
    num_row_tiles = triton.cdiv(len(rows), tile_rows) + num_experts
    grid = (num_row_tiles * triton.cdiv(num_columns, TILE_COLUMNS),)
    with torch.cuda.device_of(rows):  # Triton launches on the current device
        product_kernel[grid](
            rows.contiguous(),
            weight_EOI,
            ends_E,
            out,
            num_experts,
            width,
            num_columns,
            num_row_tiles,
            IS_INTERPRETED=rows.device.type == "cpu",
            **tile_constants(tile_rows, num_experts),
            **launch_options(tile_rows),
        )
    return out
