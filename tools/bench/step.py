"""Step time against the bare matrix products and attention calls inside the step.

The step's own calls (matrix products, convolutions, attention) are recorded once, then replayed on
the same tensors with nothing in between. Their time is what the mathematics costs on this machine;
the ratio says how much of a step is that.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.config import ModelConfig, MoeConfig, VaeConfig
from model.kv_cache import build_step_groups
from model.loading.options import LoadOptions
from model.planning.cards import Card
from model.planning.step_cost import StepCost, count_cost
from model.sequence import ImageSequence
from model.transformer import HunyuanImage
from tools.bench.random_model import build_random_model

_BARE = (
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "linear",
    "convolution",
    "scaled_dot_product",
    "grouped_mm",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepBench:
    """What to measure. The defaults: an eighth of the real width, a quarter of the depth.

    Where `head_dim`, `kv_heads` or `expert_width` is 0, it follows from the width.
    """

    hidden: int = 512
    head_dim: int = 0
    kv_heads: int = 0
    expert_width: int = 0
    layers: int = 8
    experts: int = 64
    top_k: int = 8
    image_tokens: int = 1024
    prompt_tokens: int = 100
    rows: int = 2
    dtype: str = "float32"
    quantization: str = "none"
    device: str = "cpu"
    repeats: int = 5

    @property
    def options(self) -> LoadOptions:
        return LoadOptions(
            device=self.device,
            dtype=getattr(torch, self.dtype),
            quantization=self.quantization,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """Medians over the repeats, in seconds, and memory above the parameters, in bytes."""

    step_s: float
    bare_s: float
    ratio: float
    num_bare_calls: int
    parameter_bytes: int
    peak_extra_bytes: int
    num_threads: int


def run_step_bench(bench: StepBench) -> StepResult:
    """Measure a model with random weights."""
    return measure_step(build_bench_model(bench), bench)


def measure_step(transformer: HunyuanImage, bench: StepBench) -> StepResult:
    """Measure; step and replay alternate, so that noise hits both."""
    step = bind_step(transformer, bench)
    with torch.inference_mode():
        step()  # warm-up
        with peak_memory(bench.device) as peak:
            step()
        with CallRecorder() as recorder:
            step()
        steps, bares = [], []
        for _ in range(bench.repeats):
            steps.append(timed(step, bench.device))
            bares.append(timed(recorder.replay, bench.device))
    step_s, bare_s = statistics.median(steps), statistics.median(bares)
    return StepResult(
        step_s=step_s,
        bare_s=bare_s,
        ratio=bare_s / step_s,
        num_bare_calls=len(recorder.calls),
        parameter_bytes=sum(p.nbytes for p in transformer.parameters()),
        peak_extra_bytes=peak[0],
        num_threads=torch.get_num_threads(),
    )


def bench_config(bench: StepBench) -> ModelConfig:
    """Return an architecture with the real model's proportions at this width."""
    head_dim = bench.head_dim or (64 if bench.hidden % 256 == 0 else bench.hidden // 4)
    num_heads = bench.hidden // head_dim
    moe = MoeConfig(
        num_experts=bench.experts,
        experts_per_token=bench.top_k,
        expert_width=bench.expert_width or bench.hidden * 3 // 4,
        num_shared_experts=1,
        normalize_weights=True,
    )
    return ModelConfig(
        vocab_size=512,
        hidden_size=bench.hidden,
        num_heads=num_heads,
        num_kv_heads=bench.kv_heads or max(1, num_heads // 4),
        head_dim=head_dim,
        use_qk_norm=True,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        max_positions=22800,
        layers=(moe,) * bench.layers,
        image_base_size=1024,
        patch_hidden_size=max(32, bench.hidden // 4),
        norm_num_groups=32,
        vae=VaeConfig(
            block_channels=(32,) * 5,
            layers_per_block=1,
            latent_channels=32,
            rgb_channels=3,
            spatial_factor=16,
            temporal_factor=1,
            match_channels_down=True,
            match_channels_up=True,
            scaling_factor=1.0,
            shift_factor=0.0,
            norm_num_groups=32,
        ),
        vision={},
        vision_aligner={},
    )


def build_bench_model(bench: StepBench) -> HunyuanImage:
    """Return the transformer with random weights and without a VAE."""
    return build_random_model(bench_config(bench), bench.options)


def count_bench_cost(bench: StepBench, card: Card) -> StepCost:
    """Return what a step costs on a card: counted, not measured."""
    on_meta = replace(bench, device="meta")
    step = bind_step(build_bench_model(on_meta), on_meta)
    # Not inference mode, in which composite operations are not taken apart into their kernels.
    with torch.no_grad(), count_cost(card) as cost:
        step()
    return cost


def bind_step(transformer: HunyuanImage, bench: StepBench) -> Callable[[], Tensor]:
    """Return one denoising step of `rows` rows, as the pipeline runs it."""
    height = 2 ** (bench.image_tokens.bit_length() // 2)
    grid = (height, bench.image_tokens // height)
    rows = [
        ImageSequence(
            ids=(row,) * bench.prompt_tokens + (0,) * (1 + grid[0] * grid[1]),
            prefix_length=bench.prompt_tokens,
            grid_height=grid[0],
            grid_width=grid[1],
        )
        for row in range(bench.rows)
    ]
    with torch.inference_mode():
        groups = build_step_groups(transformer, rows)
    images = max(1, bench.rows // 2)
    branches = bench.rows // images
    latent_BCYX = torch.randn(images, 32, *grid, device=bench.device)
    timestep_B = torch.full((images,), 500.0, device=bench.device)

    def step() -> Tensor:
        x_BSD = transformer.embed_step(latent_BCYX, timestep_B).repeat(branches, 1, 1)
        x_BSD = transformer.run_layers(x_BSD, groups)
        return transformer.predict_velocity(x_BSD, timestep_B.repeat(branches), grid)

    return step


class CallRecorder(TorchDispatchMode):
    """Keeps every heavy call with its very tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__.lstrip("_")
        if any(name.startswith(bare) for bare in _BARE):
            self.calls.append((func, args, kwargs))
        return func(*args, **kwargs)

    def replay(self) -> None:
        for func, args, kwargs in self.calls:
            func(*args, **kwargs)


@contextmanager
def peak_memory(device: str) -> Iterator[list[int]]:
    """Yield a list whose first entry is, afterwards, the peak of memory allocated meanwhile.

    On CPU it is the process's resident peak (Linux), else 0: not measurable.
    """
    peak = [0]
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield peak
        peak[0] = torch.cuda.max_memory_allocated() - before
        return
    reset = Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")  # makes VmHWM start again from the present size
    except OSError:
        yield peak
        return
    before = _status_bytes("VmRSS")
    yield peak
    peak[0] = _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def timed(run: Callable[[], object], device: str) -> float:
    """Return the seconds that a call takes, until its device has finished."""
    started = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started
