"""Runs the Triton kernel of grouped products for `test_grouped.py`, in a process of its own.

`interpret`: on the CPU, in Triton's interpreter, which has to be chosen before Triton is imported.
`compile`: down to the machine code of each card, without one.
"""

import json
import os
import sys
from typing import Any

import torch

# Rows of each expert: none, one, fewer and more than a tile; and rows of other ranks' experts.
CASES: dict[str, dict[str, Any]] = {
    "few rows": {"counts": [5, 0, 40, 1, 0, 17, 3, 30], "others": 0, "sides": (96, 200)},
    "many rows": {"counts": [300, 0, 10, 129], "others": 7, "sides": (64, 128)},
    "odd number of experts": {"counts": [1, 260, 70], "others": 0, "sides": (80, 72)},
    "more tiles than share": {"counts": [1300, 200], "others": 0, "sides": (32, 264)},
    "no rows at all": {"counts": [0, 0, 0], "others": 4, "sides": (32, 64)},
}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
CAPABILITIES = (80, 89, 90, 120)


def interpret(counts: list[int], others: int, sides: tuple[int, int], dtype: torch.dtype) -> float:
    """Return the largest error of a row, relative to the norms of its factors."""
    from model import grouped_triton

    generator = torch.Generator().manual_seed(1)
    width, columns = sides
    rows = torch.randn(sum(counts) + others, width, generator=generator).to(dtype)
    weight_EOI = torch.randn(len(counts), columns, width, generator=generator).to(dtype)
    ends_E = torch.tensor(counts).cumsum(0).to(torch.int32)
    ours = grouped_triton.grouped_product(rows, weight_EOI, ends_E).float()
    errors, start = [0.0], 0
    for expert, count in enumerate(counts):
        part = slice(start, start + count)
        truth = rows[part].float() @ weight_EOI[expert].float().T
        errors += ((ours[part] - truth).norm(dim=1) / truth.norm(dim=1)).tolist()
        start += count
    return max(errors)


def compile_for(capability: int, tile_rows: int) -> dict[str, Any]:
    """Return facts of the machine code for a card and a size of tiles."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from model import grouped_triton

    sizes = {"num_experts": "i32", "width": "i32", "num_columns": "i32", "num_row_tiles": "i32"}
    constants = {
        **grouped_triton.tile_constants(tile_rows, num_experts=64),
        "IS_INTERPRETED": False,
    }
    source = ASTSource(
        fn=grouped_triton.product_kernel,
        signature={
            **dict.fromkeys(("rows_ptr", "weight_ptr", "out_ptr"), "*bf16"),
            "ends_ptr": "*i32",
            **sizes,
            **dict.fromkeys(constants, "constexpr"),
        },
        constexprs=constants,
    )
    target = GPUTarget("cuda", capability, 32)
    compiled = compile(source, target=target, options=grouped_triton.launch_options(tile_rows))
    code = compiled.asm["ptx"]
    return {
        "capability": capability,
        "tile_rows": tile_rows,
        "shared_bytes": compiled.metadata.shared,
        "machine_code_bytes": len(compiled.asm["cubin"]),
        "tensor_core_products": code.count("mma.sync") + code.count("wgmma.mma_async"),
        "spills": ".local" in code,
    }


def main(what: str) -> None:
    if what == "compile":
        facts = [compile_for(c, tile_rows) for c in CAPABILITIES for tile_rows in (16, 64, 128)]
        sys.stdout.write(json.dumps(facts))
        return
    assert os.environ["TRITON_INTERPRET"] == "1"
    errors = {
        f"{name}, {dtype}": interpret(**case, dtype=DTYPES[dtype])
        for name, case in CASES.items()
        for dtype in DTYPES
    }
    sys.stdout.write(json.dumps(errors))


if __name__ == "__main__":
    main(sys.argv[1])
