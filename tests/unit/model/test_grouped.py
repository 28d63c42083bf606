"""The grouped product: one interface, and a Triton kernel that agrees with it."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from model.grouped import (
    GROUPED_CAPABILITIES,
    enable_triton,
    grouped_product,
    has_triton,
    is_fast,
    use_torch,
)
from model.loading.build import load_model
from model.loading.options import LoadOptions
from tests.device.pretend_cuda import PretendTensor, bare
from tests.device.pretend_functions import pretended_cuda
from tests.gpu.agreement import hidden
from tests.unit.model.triton_cases import CAPABILITIES, CASES, DTYPES

ROOT = Path(__file__).parents[3]
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed: `pip install triton` (286 MB) runs its interpreter on a CPU",
)
# float16 has ten bits of mantissa, bfloat16 seven, which the interpreter cuts off.
BOUNDS = {"bfloat16": 2**-7, "float16": 2**-10}
SHARED_BYTES = 101_376  # of a block on sm89 and sm120, the least of these cards


def run_triton(what: str, folder: Path, **environment: str) -> Any:
    run = subprocess.run(
        [sys.executable, "-m", "tests.unit.model.triton_cases", what],
        cwd=ROOT,
        env={**os.environ, "TRITON_CACHE_DIR": str(folder), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


def test_rows_meet_the_matrix_of_their_own_expert() -> None:
    rows, weight_EOI = torch.randn(6, 16), torch.randn(3, 8, 16)
    ends_E = torch.tensor([2, 2, 6], dtype=torch.int32)
    expected = torch.cat((rows[:2] @ weight_EOI[0].T, rows[2:] @ weight_EOI[2].T))
    torch.testing.assert_close(grouped_product(rows, weight_EOI, ends_E), expected)
    reference = F.grouped_mm(rows, weight_EOI.transpose(1, 2), offs=ends_E)
    assert torch.equal(grouped_product(rows, weight_EOI, ends_E), reference)


def test_torchs_product_is_fast_in_bfloat16_on_the_cards_it_has_a_kernel_for() -> None:
    assert all(is_fast(torch.bfloat16, capability) for capability in GROUPED_CAPABILITIES)
    assert not is_fast(torch.bfloat16, (8, 0))
    assert not is_fast(torch.float16, GROUPED_CAPABILITIES[0])


@pytest.mark.parametrize(
    ("capability", "dtype", "words"),
    [((8, 0), torch.float32, "float32"), ((7, 5), torch.float16, "older")],
)
def test_the_triton_kernel_is_refused_with_the_reason(
    capability: tuple[int, int], dtype: torch.dtype, words: str
) -> None:
    with pretended_cuda(capability):
        assert words in enable_triton(torch.device("cuda:0"), dtype)


@pytest.fixture
def _torch_afterwards() -> Iterator[None]:
    yield
    use_torch()


@pytest.mark.usefixtures("_torch_afterwards")
def test_a_product_that_agrees_with_torchs_takes_its_place(tiny_checkpoint: Path) -> None:
    """And then a step on a card that torch has no fast product for waits no more."""
    waits = []

    def product(rows: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
        with _disable_current_modes():  # without torch's wait
            out = F.grouped_mm(bare(rows), bare(weight_EOI).transpose(1, 2), offs=bare(ends_E))
        return PretendTensor(out, rows.device)

    with pretended_cuda((8, 0)) as cuda:
        options = LoadOptions(device="cuda:0", dtype=torch.bfloat16)
        transformer = load_model(tiny_checkpoint, options)
        for is_enabled in (False, True):
            if is_enabled:
                assert enable_triton(torch.device("cuda"), torch.bfloat16, product) == ""
            cuda.record.clear()
            hidden(transformer)
            waits.append(sum("grouped_mm" in str(sync) for sync in cuda.record.syncs))
    assert waits == [2 * len(transformer.layers), 0]


@pytest.mark.usefixtures("_torch_afterwards")
def test_a_product_that_differs_or_fails_does_not_take_torchs_place() -> None:
    def shifted(rows: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
        return grouped_product(rows, weight_EOI.roll(1, 0), ends_E)

    def failing(rows: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
        raise RuntimeError("no kernel image is available")

    with pretended_cuda((8, 0)):
        device = torch.device("cuda:0")
        assert "off torch's product" in enable_triton(device, torch.bfloat16, shifted)
        assert "no kernel image" in enable_triton(device, torch.bfloat16, failing)
        assert not has_triton(device)


@needs_triton
def test_the_triton_kernel_agrees_with_float32_in_its_interpreter(tmp_path: Path) -> None:
    errors = run_triton("interpret", tmp_path, TRITON_INTERPRET="1")
    assert set(errors) == {f"{name}, {dtype}" for name in CASES for dtype in DTYPES}
    wrong = {name: e for name, e in errors.items() if e > BOUNDS[name.rpartition(", ")[2]]}
    assert wrong == {}


@needs_triton
def test_the_triton_kernel_becomes_machine_code_of_every_card(tmp_path: Path) -> None:
    """Triton's compiler and NVIDIA's assembler need no GPU; how fast it is, only one can say."""
    facts = run_triton("compile", tmp_path)
    assert {fact["capability"] for fact in facts} == set(CAPABILITIES)
    for fact in facts:
        assert fact["machine_code_bytes"] > 0
        assert fact["tensor_core_products"] > 0
        assert fact["shared_bytes"] <= SHARED_BYTES
        assert not fact["spills"]
