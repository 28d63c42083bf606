"""Checks of single kernels with a fixed routing: nothing upstream can flip a choice of experts.

Each compares a kernel on the device with float32 on the CPU, by the norm of the difference over
the norm of the truth.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model import fused, grouped
from model.fused import FusedKernel
from model.moe import Routing, sort_by_expert
from model.quantization import fp8_cuda, scheme
from model.quantization.scheme import SCHEMES, dequantize, quantize
from pipeline.device import missing_compiler

TOKENS, TOP_K, EXPERTS, WIDTH, OUT = 192, 2, 8, 256, 384
HEADS, HEAD = 4, 64

# bfloat16 has eight bits: a result rounded once is 0.17 % off, one rounded twice 0.24 %.
BFLOAT16_BOUND = 0.005
# float8 e4m3 has four bits: rounded rows alone are 2.7 % off.
FLOAT8_BOUND = 0.05
FLOAT32_BOUND = 1e-5


@dataclass(frozen=True, slots=True)
class KernelCheck:
    """What a check found. A check that this device cannot run has no error, and a note."""

    name: str
    error: float | None
    bound: float
    is_ok: bool
    note: str = ""


Check = Callable[[torch.device], Iterator[KernelCheck]]


def check_kernels(device: torch.device) -> Iterator[KernelCheck]:
    """Run every check; one that raises is a failed row, and the others follow."""
    for name, check in CHECKS.items():
        try:
            yield from check(device)
        except Exception as e:  # noqa: BLE001 -- the next check may well work
            yield KernelCheck(name, None, 0.0, is_ok=False, note=f"{type(e).__name__}: {e}"[:400])


def relative_error(ours: Tensor, truth: Tensor) -> float:
    """Return the norm of the difference over the norm of the truth, both as float32 on the CPU."""
    expected = truth.cpu().float()
    return float((ours.cpu().float() - expected).norm() / expected.norm())


def fixed_routing(device: torch.device) -> Routing:
    """Return a routing that leaves one expert without tokens and gives another many."""
    tokens = torch.arange(TOKENS).unsqueeze(1)
    experts_TK = torch.cat((tokens % (EXPERTS - 2), EXPERTS - 1 - (tokens % 5 == 0).long()), dim=1)
    weights_TK = torch.linspace(0.1, 0.9, TOKENS * TOP_K).view(TOKENS, TOP_K)
    return sort_by_expert(weights_TK.to(device), experts_TK.to(device), 0, EXPERTS, EXPERTS)


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _result(name: str, ours: Tensor, truth: Tensor, bound: float) -> KernelCheck:
    error = relative_error(ours, truth)
    return KernelCheck(name, error, bound, is_ok=error <= bound)


def _skipped(name: str, reason: str) -> KernelCheck:
    return KernelCheck(name, None, 0.0, is_ok=True, note=f"not run: {reason}")


def _grouped_truth(rows: Tensor, weight_EOI: Tensor, routing: Routing) -> Tensor:
    """Return the grouped product in float32 on the CPU."""
    experts = routing.experts.cpu().long()
    rows, weight_EOI = rows.cpu().float(), weight_EOI.cpu().float()
    return torch.stack([weight_EOI[e] @ row for e, row in zip(experts, rows, strict=True)])


def check_grouped_bfloat16(device: torch.device) -> Iterator[KernelCheck]:
    """Check the experts' grouped product in bfloat16."""
    routing = fixed_routing(device)
    x_TD = _random(TOKENS, WIDTH).bfloat16().to(device)
    weight_EOI = (_random(EXPERTS, OUT, WIDTH) * WIDTH**-0.5).bfloat16().to(device)
    rows = x_TD[routing.tokens]
    ours = F.grouped_mm(rows, weight_EOI.transpose(1, 2), offs=routing.ends_E)
    truth = _grouped_truth(rows, weight_EOI, routing)
    yield _result("grouped product, bfloat16", ours, truth, BFLOAT16_BOUND)


def check_grouped_triton(device: torch.device) -> Iterator[KernelCheck]:
    """Check the grouped product in Triton, which serves devices that torch has none for."""
    name = "grouped product, Triton"
    reason = "compiled on CUDA alone" if device.type != "cuda" else missing_compiler()
    if reason:
        yield _skipped(name, reason)
        return
    from model import grouped_triton

    routing = fixed_routing(device)
    for dtype in grouped.TRITON_DTYPES:
        rows = _random(TOKENS, WIDTH).to(dtype).to(device)[routing.tokens]
        weight_EOI = (_random(EXPERTS, OUT, WIDTH) * WIDTH**-0.5).to(dtype).to(device)
        ours = grouped_triton.grouped_product(rows, weight_EOI, routing.ends_E)
        truth = _grouped_truth(rows, weight_EOI, routing)
        yield _result(f"{name}, {str(dtype).removeprefix('torch.')}", ours, truth, BFLOAT16_BOUND)


def check_grouped_float8(device: torch.device) -> Iterator[KernelCheck]:
    """Check the experts' grouped product on float8 units."""
    name = "grouped product, float8"
    routing = fixed_routing(device)
    x_TD = _random(TOKENS, WIDTH).bfloat16().to(device)
    packed, scale = _quantized(_random(EXPERTS, OUT, WIDTH) * WIDTH**-0.5, "fp8", device)
    if not fp8_cuda.is_grouped_usable(x_TD, packed):
        yield _skipped(name, "no grouped float8 products on this device")
        return
    values, row_scale = fused.quantize_rows.eager(x_TD[routing.tokens])
    ours = fp8_cuda.grouped_linear(values, row_scale, packed, scale, routing.ends_E)
    restored = dequantize.eager(packed.cpu(), scale.cpu(), torch.float32)
    rows = values.cpu().float() * row_scale.cpu()
    yield _result(name, ours, _grouped_truth(rows, restored, routing), BFLOAT16_BOUND)
    unrounded = _grouped_truth(x_TD[routing.tokens], restored, routing)
    yield _result(f"{name}, against unrounded rows", ours, unrounded, FLOAT8_BOUND)


def check_linear_float8(device: torch.device) -> Iterator[KernelCheck]:
    """Check a linear layer on float8 units; 33 tokens are no multiple of anything."""
    x_TD = _random(33, WIDTH).bfloat16().to(device)
    packed, scale = _quantized(_random(OUT, WIDTH) * WIDTH**-0.5, "fp8", device)
    if not fp8_cuda.is_usable(x_TD, packed):
        yield _skipped("linear layer, float8", "this device has no float8 units")
        return
    ours = fp8_cuda.linear(x_TD, packed, scale)
    truth = x_TD.cpu().float() @ dequantize.eager(packed.cpu(), scale.cpu(), torch.float32).T
    yield _result("linear layer, float8", ours, truth, FLOAT8_BOUND)


def check_dequantize(device: torch.device) -> Iterator[KernelCheck]:
    """Check that quantized weights are restored as the CPU restores them."""
    for name in SCHEMES:
        packed, scale = _quantized(_random(EXPERTS, OUT, WIDTH), name, torch.device("cpu"))
        truth = dequantize.eager(packed, scale, torch.bfloat16)
        ours = dequantize.eager(packed.to(device), scale.to(device), torch.bfloat16)
        yield _result(f"dequantize, {name}", ours, truth, 0.0)


def check_combine(device: torch.device) -> Iterator[KernelCheck]:
    """Check the sum of each token's rows, which embedding_bag takes in one pass."""
    routing = fixed_routing(device)
    rows = _random(TOKENS * TOP_K, WIDTH).bfloat16().to(device)
    position = torch.empty_like(routing.order)
    position[routing.order] = torch.arange(len(position), device=device)
    ours = F.embedding_bag(position.view(TOKENS, TOP_K), rows, mode="sum")
    truth = torch.zeros(TOKENS, WIDTH).index_add_(0, routing.tokens.cpu(), rows.cpu().float())
    yield _result("combine, embedding_bag", ours, truth, BFLOAT16_BOUND)


def check_fused(device: torch.device) -> Iterator[KernelCheck]:
    """Check each fused kernel, compiled by Triton, against its eager function on the device."""
    reason = "compiled on CUDA alone" if device.type != "cuda" else missing_compiler()
    for dtype, bound in ((torch.float32, FLOAT32_BOUND), (torch.bfloat16, BFLOAT16_BOUND)):
        for name, (kernel, given) in fused_arguments(dtype).items():
            label = f"fused {name}, {str(dtype).removeprefix('torch.')}"
            if reason:
                yield _skipped(label, reason)
                continue
            arguments = [a.to(device) if isinstance(a, Tensor) else a for a in given]
            try:
                pairs = [_outputs(f(*arguments)) for f in (kernel.compiled(), kernel.eager)]
            except Exception as e:  # noqa: BLE001 -- the next kernel may well compile
                note = f"{type(e).__name__}: {e}"[:400]
                yield KernelCheck(label, None, bound, is_ok=False, note=note)
                continue
            error = max(relative_error(a, b) for a, b in zip(*pairs, strict=True))
            # A value between two float8 neighbours may be rounded to either.
            limit = max(bound, 0.01) if pairs[0][0].dtype == torch.float8_e4m3fn else bound
            yield KernelCheck(label, error, limit, is_ok=error <= limit)


def fused_kernels() -> dict[str, FusedKernel[..., Any]]:
    """Return every fused kernel of the product by name."""
    found = {**vars(fused), **vars(scheme)}.values()
    return {kernel.name: kernel for kernel in found if isinstance(kernel, FusedKernel)}


def fused_arguments(dtype: torch.dtype) -> dict[str, tuple[FusedKernel[..., Any], tuple[Any, ...]]]:
    """Return every fused kernel with arguments on the CPU."""
    x_BSD = _random(1, TOKENS, WIDTH).to(dtype)
    angles = _random(TOKENS, HEAD)
    heads = _random(2, HEADS, TOKENS, HEAD).to(dtype)
    given: dict[str, tuple[Any, ...]] = {
        "rms_norm": (x_BSD, _random(WIDTH), 1e-5),
        "add_rms_norm": (x_BSD, x_BSD.flip(1), _random(WIDTH), 1e-5),
        "rotate_and_norm": (heads, angles.cos(), angles.sin(), _random(HEAD), 1e-5),
        "normalize_weights": (_random(TOKENS, TOP_K).abs(),),
        "swiglu": (x_BSD[0],),
        "weighted_swiglu": (x_BSD[0], _random(TOKENS)),
        "quantize_rows": (x_BSD[0],),
        "quantized_weighted_swiglu": (x_BSD[0], _random(TOKENS)),
        "dequantize": (*_quantized(_random(OUT, WIDTH), "int4", torch.device("cpu")), dtype),
    }
    return {name: (kernel, given[name]) for name, kernel in fused_kernels().items()}


def _outputs(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _quantized(weight: Tensor, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    packed, scale = quantize(weight, SCHEMES[name])
    return packed.to(device), scale.to(device)


CHECKS: dict[str, Check] = {
    "grouped product, bfloat16": check_grouped_bfloat16,
    "grouped product, Triton": check_grouped_triton,
    "grouped product, float8": check_grouped_float8,
    "linear layer, float8": check_linear_float8,
    "dequantize": check_dequantize,
    "combine": check_combine,
    "fused kernels": check_fused,
}
