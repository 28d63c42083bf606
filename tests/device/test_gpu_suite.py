"""The tests of a real GPU, rehearsed: they pass on a sound device and fail on a faulty one."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.loading.build import load_model
from model.loading.options import LoadOptions
from tests.device.pretend_cuda import Products
from tests.device.pretend_functions import pretended_cuda
from tests.device.pretend_rules import PRODUCTS, aten
from tests.device.test_modes import REQUEST, load
from tests.gpu.agreement import (
    BFLOAT16_COSINE,
    FLOAT32_ERROR,
    hidden,
    largest_error,
    smallest_cosine,
)
from tests.gpu.conftest import WIDE_CONFIG
from tests.gpu.test_one_gpu import waits_of_later_steps
from training.random_checkpoint import write_random_checkpoint

ROOT = Path(__file__).parents[2]
MATRIX_PRODUCTS = (aten.mm.default, aten.addmm.default, aten._grouped_mm.default)
FLOAT32_ON_CPU = LoadOptions(dtype=torch.float32)


@pytest.mark.slow
def test_the_tests_of_a_gpu_pass_on_a_cuda_that_pretends() -> None:
    """All of them: those that are skipped need Triton, which is not there without a GPU."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/gpu", "-q", "-rs", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, "PRETEND_CUDA": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]
    skipped = [line for line in run.stdout.splitlines() if line.startswith("SKIPPED")]
    assert len(skipped) <= 1, skipped
    assert all("Triton" in line or "C compiler" in line for line in skipped), skipped


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Those of tests/gpu: two of eight experts chosen, or all of them."""
    folder = tmp_path_factory.mktemp("gpu")
    chosen = {"two": 2, "all": WIDE_CONFIG["num_experts"]}
    for name, top_k in chosen.items():
        write_random_checkpoint(folder / name, {**WIDE_CONFIG, "moe_topk": top_k})
    return {name: folder / name for name in chosen}


def products_with(change: Callable[[Any], Callable[..., Tensor]]) -> Products:
    return {**PRODUCTS, **{product: change(product) for product in MATRIX_PRODUCTS}}


def in_tf32(product: Any) -> Callable[..., Tensor]:
    """Round the factors of float32 products to TF32's ten bits of mantissa."""

    def rounded(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dtype != torch.float32:
            return x
        return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    return lambda *args, **kwargs: product(*map(rounded, args), **kwargs)


def rounded_otherwise(product: Any) -> Callable[..., Tensor]:
    """Let two of a hundred bfloat16 results be their neighbour: a device sums in another order."""
    generator = torch.Generator().manual_seed(3)

    def run(*args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = product(*args, **kwargs)
        is_other = torch.rand(out.shape, generator=generator) < 0.02
        return torch.where(is_other, (out.float() * (1 + 2**-8)).to(out.dtype), out)

    return run


def with_the_next_expert(x: Tensor, weight_EIO: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Multiply each row by the matrix of a wrong expert, for a tenth of the output."""
    right: Tensor = aten._grouped_mm.default(x, weight_EIO, *args, **kwargs)
    wrong = aten._grouped_mm.default(x, weight_EIO.roll(1, 0), *args, **kwargs)
    columns = torch.arange(right.shape[1]) < right.shape[1] // 10
    return torch.where(columns, wrong, right)


def on_device(folder: Path, dtype: torch.dtype, products: Products = PRODUCTS) -> Tensor:
    with pretended_cuda(products=products):
        return hidden(load_model(folder, replace(FLOAT32_ON_CPU, device="cuda:0", dtype=dtype)))


def test_the_bound_of_float32_passes_another_order_of_sums_and_not_tf32(
    checkpoints: dict[str, Path],
) -> None:
    folder = checkpoints["two"]
    truth = hidden(load_model(folder, FLOAT32_ON_CPU))
    assert largest_error(on_device(folder, torch.float32), truth) <= FLOAT32_ERROR / 10
    tf32 = on_device(folder, torch.float32, products_with(in_tf32))
    assert largest_error(tf32, truth) > 10 * FLOAT32_ERROR


def test_the_bound_of_bfloat16_passes_other_rounding_and_not_a_wrong_expert(
    checkpoints: dict[str, Path],
) -> None:
    folder = checkpoints["all"]
    truth = hidden(load_model(folder, FLOAT32_ON_CPU))
    noisy = on_device(folder, torch.bfloat16, products_with(rounded_otherwise))
    assert smallest_cosine(noisy, truth) >= BFLOAT16_COSINE
    wrong = {**PRODUCTS, aten._grouped_mm.default: with_the_next_expert}
    assert smallest_cosine(on_device(folder, torch.bfloat16, wrong), truth) < BFLOAT16_COSINE


def test_chosen_experts_flip_in_bfloat16_so_that_no_bound_holds(
    checkpoints: dict[str, Path],
) -> None:
    """Why tests/gpu compares bfloat16 with all experts chosen."""
    folder = checkpoints["two"]
    truth = hidden(load_model(folder, FLOAT32_ON_CPU))
    assert smallest_cosine(on_device(folder, torch.bfloat16), truth) < BFLOAT16_COSINE


def test_a_step_that_waits_is_seen(wide_checkpoint: Path) -> None:
    """float16 has no fast grouped product: torch waits for the device in every layer."""
    with pretended_cuda():
        pipeline = load(wide_checkpoint, device="cuda:0", dtype="float16")
        waits = waits_of_later_steps(pipeline, replace(REQUEST, num_steps=3))
    assert waits
    assert all("grouped_mm" in wait for wait in waits)
