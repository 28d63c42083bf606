from dataclasses import replace
from pathlib import Path

import pytest

from model.config_file import load_config
from model.mesh import SINGLE
from model.planning.devices import Devices
from model.planning.memory_plan import RankPlan, StepTime
from model.planning.meta_step import build_meta_model
from pipeline.settings import PipelineSettings
from server.settings import load_settings
from tools.plan import OFFLOAD, PlanRequest, environment_of, fastest_fitting, settings_of

CONFIG = Path(__file__).parents[2] / "golden" / "real_config_distil.json"
DEVICES = Devices(count=4, memory_bytes=80e9)
REQUEST = PlanRequest(config=load_config(CONFIG), devices=DEVICES)
PLAN = RankPlan(
    mode="single", num_ranks=1, scheme="none", parameters=1, prefix=1, activations=1,
    cache_residuals=1, vae=1, step=StepTime(
        counted_s=1.0, roofline_s=1.0, copying_s=0.0, num_kernels=1, bytes_moved=1, flops=1,
        bytes_exchanged=0, kinds={},
    ), bytes_fetched=0,
)  # fmt: skip


def plan_taking(seconds: float, scheme: str = "none") -> RankPlan:
    return replace(PLAN, scheme=scheme, step=replace(PLAN.step, counted_s=seconds))


@pytest.mark.parametrize(
    ("mode", "num_ranks", "expected"),
    [
        ("single", 1, {}),
        ("cfg2", 2, {"cfg_parallel_size": 2}),
        ("tensor4", 4, {"tensor_parallel_size": 4}),
        ("cfg2xtensor2", 4, {"cfg_parallel_size": 2, "tensor_parallel_size": 2}),
        ("layers3", 3, {"layer_devices": ("cuda:0", "cuda:1", "cuda:2"), "device": "cuda:0"}),
        (OFFLOAD, 1, {"device_memory_gb": 73.6}),
    ],
)
def test_the_settings_of_a_mode_survive_the_environment(
    mode: str, num_ranks: int, expected: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(replace(PLAN, mode=mode, num_ranks=num_ranks), REQUEST, "folder")
    common = {"checkpoint": "folder", "device": "cuda"}
    common |= {"dtype": "bfloat16", "vae_dtype": "bfloat16"}
    assert settings == PipelineSettings.model_validate({**common, **expected})
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)
    assert load_settings(None, worker__checkpoint="folder").worker == settings


def test_input_images_take_their_parts_and_the_room_of_their_tokens() -> None:
    edits = replace(REQUEST, num_input_images=3)
    # 4102 to 5126 tokens an image at base 1024.
    tokens = edits.workload.past_tokens(edits.config)
    assert tokens == REQUEST.workload.past_tokens(edits.config) + 3 * 5126
    text, images = (
        sum(p.nbytes for p in build_meta_model(r.config, SINGLE, r.options, None).parameters())
        for r in (REQUEST, edits)
    )
    assert 0.8e9 < images - text < 3e9  # tower 0.4 billion parameters, aligner, encoder
    assert settings_of(PLAN, edits, "folder").image_inputs
    assert not settings_of(PLAN, REQUEST, "folder").image_inputs


def test_defaults_are_not_printed() -> None:
    assert environment_of(PipelineSettings(checkpoint="x")) == {}
    variables = environment_of(PipelineSettings(checkpoint="x", expert_parallel=True))
    assert variables == {"HYIMAGE_WORKER__EXPERT_PARALLEL": "true"}


def test_the_fastest_wins_and_of_equals_the_most_exact() -> None:
    slow, fast = plan_taking(2.0), plan_taking(1.0, "int4")
    exact = plan_taking(1.01, "int8")
    too_large = replace(plan_taking(0.1), parameters=int(80e9))
    assert fastest_fitting([slow, fast, exact, too_large], DEVICES) == exact
    assert fastest_fitting([too_large], DEVICES) is None
