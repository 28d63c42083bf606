"""Step caches and schedulers in the real loop, on a random checkpoint of the real architecture."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cache.build import build_step_cache
from cache.plan import NO_REUSE, CachePlan, ForecastPlan
from cache.protocol import StepCache
from cache.residual_cache import ResidualCache
from pipeline.denoise import ImageRun, denoise, start_run
from pipeline.generate import generate
from pipeline.load import Pipeline
from pipeline.noise import NoiseStream, image_noise
from pipeline.request import ImageDone, ImageRequest
from pipeline.step_cache import teacache_signal
from schedulers.build import build_scheduler
from schedulers.trajectory import Trajectory
from tests.unit.pipeline.rows import request_rows

NUM_STEPS = 8
TEA = CachePlan(start=0, end=NUM_STEPS, tea_distance=0.3)
FB = CachePlan(start=0, end=NUM_STEPS, fb_threshold_scale=8.0)
BOTH = CachePlan(start=1, end=7, tea_distance=0.5, fb_threshold_scale=9.0)
FORECAST = CachePlan(start=0, end=NUM_STEPS, forecast=ForecastPlan(order=1, interval=2))
HERMITE = replace(FORECAST, forecast=ForecastPlan(order=1, interval=2, contraction=0.5))
SCHEDULED = replace(TEA, tea_signal="schedule", tea_distance=1.0)


def start(
    pipeline: Pipeline,
    image_request: ImageRequest,
    seed: int,
    plan: CachePlan,
    scheduler: str = "Euler",
) -> ImageRun:
    rows = request_rows(pipeline, image_request)
    channels = pipeline.transformer.config.vae.latent_channels
    shape = (1, channels, rows[0].grid_height, rows[0].grid_width)
    signal = teacache_signal(pipeline.transformer, plan)
    solver = build_scheduler(scheduler, image_request.num_steps, 3.0).solver
    return start_run(
        pipeline.transformer,
        rows,
        Trajectory(solver, image_noise(seed, shape), NoiseStream(seed, shape).sample),
        image_request.guidance,
        build_step_cache(plan, pipeline.calibration, signal),
    )


def finish(pipeline: Pipeline, runs: list[ImageRun]) -> list[Tensor]:
    for _ in denoise(pipeline.transformer, runs):
        pass
    return [run.trajectory.latent_BCYX for run in runs]


def reused_steps(cache: StepCache) -> list[int]:
    return cache.reused_steps if isinstance(cache, ResidualCache) else []


@contextmanager
def counted_calls(pipeline: Pipeline) -> Iterator[list[int]]:
    """Count how often each layer runs."""
    counts = [0] * len(pipeline.transformer.layers)

    def count(index: int) -> None:
        counts[index] += 1

    handles = [
        layer.register_forward_pre_hook(lambda *_, i=i: count(i))
        for i, layer in enumerate(pipeline.transformer.layers)
    ]
    yield counts
    for handle in handles:
        handle.remove()


@pytest.fixture
def request8(image_request: ImageRequest) -> ImageRequest:
    return replace(image_request, num_steps=NUM_STEPS)


def test_images_with_different_plans_in_a_batch_equal_the_same_generated_alone(
    tiny_pipeline: Pipeline, request8: ImageRequest
) -> None:
    """Plans, prompts, solvers, guidance and numbers of steps all differ."""
    settings = [
        (replace(request8, prompt="a red fox"), NO_REUSE, "Euler"),
        (replace(request8, prompt="an old bridge in fog"), TEA, "Heun"),
        (replace(request8, prompt="tea", guidance=1.0), FB, "Euler a"),
        (replace(request8, prompt="tea", num_steps=6), FORECAST, "UniPC"),
        (replace(request8, prompt="a lake"), HERMITE, "DPM++ 2M"),
    ]

    def start_all() -> list[ImageRun]:
        return [
            start(tiny_pipeline, variant, seed, plan, scheduler)
            for seed, (variant, plan, scheduler) in enumerate(settings)
        ]

    together_runs, alone_runs = start_all(), start_all()
    together = finish(tiny_pipeline, together_runs)
    for run, in_batch, alone_run in zip(together_runs, together, alone_runs, strict=True):
        (alone,) = finish(tiny_pipeline, [alone_run])
        torch.testing.assert_close(in_batch, alone, atol=1e-5, rtol=1e-5)
        assert reused_steps(run.step_cache) == reused_steps(alone_run.step_cache)
    assert [bool(reused_steps(r.step_cache)) for r in together_runs] == [
        False,
        True,
        True,
        True,
        True,
    ]


@pytest.mark.parametrize("plan", [TEA, FB, BOTH, FORECAST, HERMITE, SCHEDULED])
def test_a_threshold_of_never_is_bit_identical_to_no_cache(
    tiny_pipeline: Pipeline, request8: ImageRequest, plan: CachePlan
) -> None:
    never = replace(
        plan,
        tea_distance=None if plan.tea_distance is None else 0.0,
        fb_threshold_scale=None if plan.fb_threshold_scale is None else 0.0,
        max_consecutive=0 if plan.forecast else plan.max_consecutive,
    )
    (ours,) = finish(tiny_pipeline, [start(tiny_pipeline, request8, 7, never)])
    (plain,) = finish(tiny_pipeline, [start(tiny_pipeline, request8, 7, NO_REUSE)])
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("plan", [NO_REUSE, TEA, FB, BOTH, FORECAST, HERMITE, SCHEDULED])
def test_diagnostics_count_what_the_layers_did(
    tiny_pipeline: Pipeline, request8: ImageRequest, plan: CachePlan
) -> None:
    request_rows(tiny_pipeline, request8)
    with counted_calls(tiny_pipeline) as counts:
        (done,) = (
            e
            for e in generate(tiny_pipeline, replace(request8, cache=plan))
            if isinstance(e, ImageDone)
        )
    diagnostics = done.diagnostics
    num_prefills = 2  # the prompt and its counterpart each pass the layers once
    num_computed = NUM_STEPS - len(diagnostics.reused_steps)
    assert counts[-1] == diagnostics.num_evaluations + num_prefills
    assert diagnostics.num_evaluations == num_computed
    assert diagnostics.num_steps == NUM_STEPS
    always_first = plan.fb_threshold_scale is not None
    assert counts[0] == num_prefills + (NUM_STEPS if always_first else num_computed)
    assert diagnostics.cache == plan.name
    assert bool(diagnostics.reused_steps) == plan.is_on


def test_a_reused_step_leaves_no_trace_of_its_neighbours_noise_level(
    tiny_pipeline: Pipeline, request8: ImageRequest
) -> None:
    """The head and the patch embedding run at the reused step's own time: the image moves on."""
    run = start(tiny_pipeline, request8, 7, FORECAST)
    velocities = [done.velocity_BCYX for done in denoise(tiny_pipeline.transformer, [run])]
    for step in reused_steps(run.step_cache):
        assert not torch.equal(velocities[step], velocities[step - 1])


def test_a_calm_image_is_not_computed_because_its_neighbour_is(
    tiny_pipeline: Pipeline, request8: ImageRequest
) -> None:
    runs = [
        start(tiny_pipeline, request8, 1, FORECAST),
        start(tiny_pipeline, request8, 2, NO_REUSE),
    ]
    rows_seen: list[int] = []
    last = tiny_pipeline.transformer.layers[-1]
    handle = last.register_forward_pre_hook(lambda _, inputs: rows_seen.append(len(inputs[0])))
    finish(tiny_pipeline, runs)
    handle.remove()
    assert isinstance(last, nn.Module)
    assert sum(rows_seen) == 2 * NUM_STEPS + 2 * (NUM_STEPS - len(reused_steps(runs[0].step_cache)))


def test_two_steps_reuse_nothing(tiny_pipeline: Pipeline, image_request: ImageRequest) -> None:
    for plan in (TEA, FB, FORECAST):
        run = start(tiny_pipeline, replace(image_request, num_steps=2), 7, plan)
        finish(tiny_pipeline, [run])
        assert reused_steps(run.step_cache) == []


def test_schedulers_generate_different_images_and_the_same_one_again(
    tiny_pipeline: Pipeline, request8: ImageRequest
) -> None:
    def image(scheduler: str) -> bytes:
        events = generate(tiny_pipeline, replace(request8, scheduler=scheduler))
        return next(e.pixels_yx3.tobytes() for e in events if isinstance(e, ImageDone))

    names = ("Euler", "Heun", "Euler a", "DPM++ 2M SDE Karras", "UniPC 3M")
    images = [image(name) for name in names]
    assert len(set(images)) == len(names)
    assert [image(name) for name in names] == images
    assert image("Default") == images[0]


def test_a_stochastic_scheduler_with_a_cache_is_generated_with_a_warning(
    tiny_pipeline: Pipeline, request8: ImageRequest
) -> None:
    events = generate(tiny_pipeline, replace(request8, scheduler="Euler a", cache=TEA))
    (diagnostics,) = (e.diagnostics for e in events if isinstance(e, ImageDone))
    assert "fresh noise" in diagnostics.warnings[0]
    assert diagnostics.resolved_scheduler == "EulerAncestral shifted"
