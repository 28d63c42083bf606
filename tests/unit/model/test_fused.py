"""Fused kernels: one kernel each on a GPU, equal to the eager function."""

import itertools
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._inductor import config as inductor_config

from model import fused
from tests.conftest import TOLERANCE

# torch's compiler calls functions of torch.jit that it has deprecated itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")

TOKENS, WIDTH, HEADS, HEAD = 24, 64, 4, 16


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def arguments(dtype: torch.dtype) -> dict[str, tuple[Any, ...]]:
    x = random(1, TOKENS, WIDTH, dtype=dtype)
    return {
        "rms_norm": (x, random(WIDTH), 1e-5),
        "add_rms_norm": (x, x.flip(1), random(WIDTH), 1e-5),
        "rotate_and_norm": (
            random(2, HEADS, TOKENS, HEAD, dtype=dtype),
            random(TOKENS, HEAD).cos(),
            random(TOKENS, HEAD).sin(),
            random(HEAD),
            1e-5,
        ),
        "swiglu": (x[0],),
        "weighted_swiglu": (x[0], random(TOKENS)),
        "normalize_weights": (random(TOKENS, 8).abs(),),
        "quantize_rows": (x[0],),
        "quantized_weighted_swiglu": (x[0], random(TOKENS)),
    }


KERNELS = sorted(arguments(torch.float32))


class FusionEndedError(Exception):
    """Stops the compiler before it needs Triton itself."""


def count_triton_kernels(kernel: fused.FusedKernel[..., Any], given: tuple[Any, ...]) -> int:
    """Return how many kernels torch's compiler for GPUs makes of a function."""
    counts: list[int] = []

    def note(nodes: list[Any]) -> list[Any]:
        counts.append(len(nodes))
        raise FusionEndedError

    options = {"cpu_backend": "triton", "_post_fusion_custom_pass": note, "fx_graph_cache": False}
    torch.compiler.reset()
    with inductor_config.patch(options), pytest.raises(Exception, match="FusionEndedError"):
        torch.compile(kernel.eager, dynamic=True, fullgraph=True)(*given)
    return sum(counts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_torchs_compiler_for_gpus_fuses_each_function_into_one_kernel(
    name: str, dtype: torch.dtype
) -> None:
    assert count_triton_kernels(getattr(fused, name), arguments(dtype)[name]) == 1


@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="torch.compile needs a C++ compiler, and this machine has none",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_a_compiled_function_agrees_with_the_eager_one(name: str, dtype: torch.dtype) -> None:
    kernel, given = getattr(fused, name), arguments(dtype)[name]
    torch.compiler.reset()
    results = kernel.compiled()(*given), kernel.eager(*given)
    for ours, reference in zip(*map(as_tuple, results), strict=True):
        assert ours.dtype == reference.dtype
        bounds = TOLERANCE[dtype]
        torch.testing.assert_close(
            ours.float(), reference.float(), atol=bounds["atol"], rtol=bounds["rtol"]
        )


def test_all_shapes_of_a_model_over_four_devices_stay_within_the_limit_of_graphs() -> None:
    """Counts of one are graphs of their own: rows, tokens, query heads that share a key."""
    torch.compiler.reset()
    counter = CompileCounter()
    run = torch.compile(fused.rotate_and_norm.eager, backend=counter, dynamic=True, fullgraph=True)
    with torch.inference_mode():
        for rows, tokens, heads in itertools.product((1, 2), (1, 7, 65), ((8, 4), (8, 1), (2, 4))):
            qkv = random(rows, tokens, heads[0], heads[1] + 2, HEAD)
            table = random(tokens, HEAD)
            run(qkv[:, :, :, : heads[1]].permute(0, 2, 3, 1, 4), table, table, random(HEAD), 1e-5)
    assert 4 * counter.frame_count <= fused.RECOMPILE_LIMIT


def test_a_function_that_cannot_be_compiled_runs_eagerly_and_is_not_tried_again() -> None:
    def cannot_be_compiled(x: Tensor) -> Tensor:
        return x * len(str(torch.tensor(int(x.sum()))))  # the compiler refuses data as a shape

    kernel = fused.FusedKernel(cannot_be_compiled)
    x = torch.ones(3)
    assert torch.equal(kernel._run_compiled(x), cannot_be_compiled(x))
    assert kernel._has_failed


def test_a_swiglu_whose_rows_are_weighted_is_the_swiglu_times_the_weights() -> None:
    up_gate, weight = arguments(torch.float32)["weighted_swiglu"]
    expected = fused.swiglu(up_gate) * weight.unsqueeze(-1)
    torch.testing.assert_close(fused.weighted_swiglu(up_gate, weight), expected)


def test_quantized_rows_are_within_float8s_precision_of_the_rows() -> None:
    x = random(TOKENS, WIDTH) * 100
    values, scale = fused.quantize_rows(x)
    error = (values.float() * scale - x).abs().amax(dim=-1, keepdim=True)
    assert bool((error <= x.abs().amax(dim=-1, keepdim=True) * 2**-4).all())


def as_tuple(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)
