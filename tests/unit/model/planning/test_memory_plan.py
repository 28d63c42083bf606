"""`hyimage plan`: what it says holds against arithmetic and against memory really used."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from model.config import ModelConfig
from model.config_file import parse_config
from model.errors import ConfigError
from model.loading.build import load_model
from model.loading.options import LoadOptions
from model.mesh import Mesh, RankGroup
from model.moe import AcquireExperts, Experts, sort_by_expert
from model.planning.devices import Devices, parse_devices
from model.planning.live_bytes import LiveBytes
from model.planning.memory_plan import (
    RankPlan,
    fit_rank,
    list_shapes,
    plan_rank,
)
from model.planning.meta_step import MeshShape, Workload
from model.quantization.scheme import SCHEMES
from model.transformer import HunyuanImage
from tests.conftest import GOLDEN
from tools.bench.step import StepBench, bench_config, bind_step, build_bench_model

OPTIONS = LoadOptions(dtype=torch.bfloat16, vae_dtype=torch.float32)
H100S = Devices(count=4, memory_bytes=80e9)


@pytest.fixture(scope="module")
def real() -> ModelConfig:
    fields = json.loads((GOLDEN / "real_config_distil.json").read_text())
    distilled = ("cfg_distilled", "use_meanflow")
    return parse_config({k: v for k, v in fields.items() if k not in distilled})


PLANS: dict[tuple[int, int], RankPlan] = {}


def plan_real(real: ModelConfig, cfg_parallel_size: int, tensor_parallel_size: int) -> RankPlan:
    """Return a plan of the real model, made once: it takes a second or two."""
    mode = (cfg_parallel_size, tensor_parallel_size)
    if mode not in PLANS:
        PLANS[mode] = plan_rank(real, MeshShape(*mode), H100S, OPTIONS, Workload())
    return PLANS[mode]


@pytest.mark.parametrize(
    ("cfg_parallel_size", "tensor_parallel_size", "weights_gb"),
    [(1, 1, 166.1), (1, 2, 85.1), (2, 1, 166.1), (1, 4, 44.7), (2, 2, 85.1), (1, 8, 24.4)],
)
def test_the_weights_of_the_real_model_are_shared_out(
    real: ModelConfig, cfg_parallel_size: int, tensor_parallel_size: int, weights_gb: float
) -> None:
    """Experts 154.6 GB, attention 3.8, shared experts 2.4, vocabulary 2.2: divided by the ranks."""
    plan = plan_real(real, cfg_parallel_size, tensor_parallel_size)
    assert plan.parameters / 1e9 == pytest.approx(weights_gb, abs=0.1)


def test_a_guided_step_of_the_real_model_is_that_of_the_specification(real: ModelConfig) -> None:
    """223 TFLOP; experts, attention, linears and convolutions are all counted."""
    plan = plan_rank(real, MeshShape(), H100S, OPTIONS, Workload(prompt_tokens=100))
    assert plan.step.flops / 1e12 == pytest.approx(223, rel=0.05)


def test_no_plan_is_faster_than_its_roofline(real: ModelConfig) -> None:
    for mode in ((1, 1), (1, 4), (2, 2)):
        plan = plan_real(real, *mode)
        assert 0 < plan.roofline_s < plan.step_s


@pytest.mark.parametrize(
    ("gpus", "fitting"),
    [
        ("4x80GB", {"tensor4"}),
        ("8x40GB", {"tensor8"}),
        ("8x80GB", {"tensor4", "tensor8", "cfg2xtensor4"}),
        ("2x141GB", {"tensor2"}),
        ("1x96GB", set()),
    ],
)
def test_the_modes_that_fit_common_machines(
    real: ModelConfig, gpus: str, fitting: set[str]
) -> None:
    devices = parse_devices(gpus)
    plans = [plan_real(real, shape.cfg, shape.tensor) for shape in list_shapes(real, devices.count)]
    assert {plan.mode for plan in plans if plan.fits(devices)} == fitting


@pytest.mark.parametrize(("scheme", "gigabytes"), [("fp8", 86.3), ("int8", 87.5), ("int4", 51.3)])
def test_the_weights_of_the_real_model_when_they_are_quantized(
    real: ModelConfig, scheme: str, gigabytes: float
) -> None:
    """159.7 GB of matrices of 2 bytes: 1 byte and little, 1 + 2/128, or 1/2 + 2/32; 6.4 stay."""
    plan = plan_rank(real, MeshShape(), H100S, OPTIONS, Workload(), SCHEMES[scheme])
    assert plan.parameters / 1e9 == pytest.approx(gigabytes, abs=0.1)


@pytest.mark.parametrize(
    ("gpus", "scheme", "has_room", "fetches"),
    [
        ("1x96GB", "none", True, True),
        ("1x96GB", "fp8", True, True),
        ("1x96GB", "int4", True, False),
        ("1x24GB", "none", False, True),
        ("1x24GB", "int8", True, True),
        ("1x24GB", "int4", True, True),
    ],
)
def test_what_one_card_can_do_when_experts_are_fetched(
    real: ModelConfig, gpus: str, scheme: str, has_room: bool, fetches: bool
) -> None:
    devices = parse_devices(gpus)
    options = replace(OPTIONS, vae_dtype=torch.bfloat16)
    plan = fit_rank(real, devices, options, Workload(), SCHEMES.get(scheme))
    assert (plan is not None) == has_room
    if plan is not None:
        assert plan.fits(devices)
        assert (plan.bytes_fetched > 0) == fetches
        whole = plan_rank(real, MeshShape(), devices, options, Workload(), SCHEMES.get(scheme))
        assert plan.step_s >= whole.step_s


def test_modes_divide_the_key_value_heads(real: ModelConfig) -> None:
    names = [shape.name for shape in list_shapes(real, 8)]
    assert names == ["single", "tensor2", "cfg2", "tensor4", "cfg2xtensor2", "tensor8",
                     "cfg2xtensor4"]  # fmt: skip


def test_tensor_ranks_may_hold_whole_experts(real: ModelConfig) -> None:
    names = [shape.name for shape in list_shapes(real, 4, expert_parallel=True)]
    assert names == ["single", "tensor2-expert", "cfg2", "tensor4-expert", "cfg2xtensor2-expert"]


@pytest.mark.parametrize("text", ["4", "80GB", "x80GB", "0x80GB", "4x80", "-1x80GB"])
def test_devices_that_are_not_understood_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="4x80GB"):
        parse_devices(text)


@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
def test_planned_weights_are_those_that_are_loaded(
    tiny_checkpoint: Path, tensor_parallel_size: int
) -> None:
    mesh = Mesh(tensor=RankGroup(0, tensor_parallel_size), size=tensor_parallel_size)
    loaded = load_model(tiny_checkpoint, OPTIONS, mesh=mesh)
    plan = plan_rank(loaded.config, MeshShape(1, tensor_parallel_size), H100S, OPTIONS, Workload())
    assert plan.parameters == sum(p.nbytes for p in loaded.parameters())


def test_live_bytes_counts_what_is_alive_and_not_what_was() -> None:
    with LiveBytes() as live:
        first = torch.empty(1000)
        view = first[:10]
        second = torch.empty(500)
        del first, second
        third = torch.empty(100)
        assert (live.live, live.peak) == (4400, 6000)  # the view keeps the first one alive
        del view, third
        assert live.live == 0


MIDDLE = StepBench(
    hidden=512, layers=4, experts=32, top_k=4, image_tokens=4096, rows=2, dtype="bfloat16"
)


class GroupedExperts(Experts):
    """Routed experts that run grouped products on the CPU, as on CUDA."""

    def forward(
        self,
        x_TD: torch.Tensor,
        weights_TK: torch.Tensor,
        experts_TK: torch.Tensor,
        acquire: AcquireExperts | None = None,
    ) -> torch.Tensor:
        count = self.num_all
        return self._run_grouped(x_TD, sort_by_expert(weights_TK, experts_TK, 0, count, count))


def use_grouped_experts(transformer: HunyuanImage) -> None:
    config = transformer.config
    for layer, moe in zip(transformer.layers, config.layers, strict=True):
        grouped = GroupedExperts(config.hidden_size, moe, RankGroup())
        grouped.load_state_dict(layer.mlp.experts.state_dict(), assign=True)
        layer.mlp.experts = grouped


def measure_peak(run: Callable[[], object]) -> int:
    """Return the most bytes that torch's own allocator had given out at once, as it recorded."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = recorded.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    live = peak = 0
    for _, num_bytes in changes:
        live += num_bytes
        peak = max(peak, live)
    return peak


SMALL = replace(MIDDLE, hidden=256, layers=2, experts=8, top_k=2, image_tokens=1024)


@pytest.mark.parametrize("bench", [SMALL, MIDDLE], ids=["small", "middle"])
def test_the_planned_peak_of_a_step_is_what_the_allocator_gives_out(bench: StepBench) -> None:
    """The path of CUDA, with grouped products, run on the CPU; within 5 %."""
    transformer = build_bench_model(bench)
    use_grouped_experts(transformer)
    step = bind_step(transformer, bench)
    with torch.inference_mode():
        step()
        measured = measure_peak(step)
    side = math.isqrt(bench.image_tokens)
    workload = Workload(prompt_tokens=100, grid=(side, side))
    plan = plan_rank(bench_config(bench), MeshShape(), H100S, OPTIONS, workload)
    assert plan.activations == pytest.approx(measured, rel=0.05)
