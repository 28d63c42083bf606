"""Guidance in the real loop: exact where neutral, rows that come and go, images of one batch."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cache.calibration import UNCALIBRATED, GuidanceInterval
from cache.plan import NO_REUSE, CachePlan, ForecastPlan
from pipeline.denoise import ImageRun, denoise, estimate_image
from pipeline.generate import generate
from pipeline.guidance import (
    NO_SECOND_ROW,
    UNCALIBRATED_INTERVAL,
    Guidance,
    ProjectedDifference,
    rescaled,
    resolve_guidance,
    scale_at,
)
from pipeline.guidance_plan import PLAIN_GUIDANCE, ApgPlan, GuidancePlan
from pipeline.load import Pipeline
from pipeline.request import Diagnostics, ImageDone, ImageRequest
from tests.unit.pipeline.runs import counted_rows, finish, start

NUM_STEPS = 8
LATE = GuidancePlan(interval=(0.0, 0.8))
MIDDLE = GuidancePlan(interval=(0.3, 0.9))
APG = GuidancePlan(apg=ApgPlan(momentum=-0.5, norm_threshold=0.3, eta=0.0))
RAMPED = GuidancePlan(ramp="linear", rescale=0.7)
TEA = CachePlan(start=0, end=NUM_STEPS, tea_distance=0.3)
FB = CachePlan(start=0, end=NUM_STEPS, fb_threshold_scale=8.0)
FORECAST = CachePlan(start=0, end=NUM_STEPS, forecast=ForecastPlan(order=1, interval=2))
CALIBRATED = replace(
    UNCALIBRATED,
    guidance=GuidanceInterval(
        low=0.0, high=0.8, measure="nearness", scale=7.0, steps=20, n=1, candidates=()
    ),
)


@pytest.fixture
def request8(image_request: ImageRequest) -> ImageRequest:
    return replace(image_request, num_steps=NUM_STEPS)


def diagnose(pipeline: Pipeline, request: ImageRequest) -> Diagnostics:
    return next(e.diagnostics for e in generate(pipeline, request) if isinstance(e, ImageDone))


NEUTRAL = [
    GuidancePlan(interval=(0.0, 1.0)),
    GuidancePlan(apg=ApgPlan(momentum=0.0, norm_threshold=None, eta=1.0)),
    GuidancePlan(rescale=0.0, ramp="none"),
]


@pytest.mark.parametrize("plan", NEUTRAL)
def test_neutral_settings_are_plain_guidance_to_the_bit(
    tiny_pipeline: Pipeline, request8: ImageRequest, plan: GuidancePlan
) -> None:
    (ours,) = finish(tiny_pipeline, [start(tiny_pipeline, request8, 7, guidance_plan=plan)])
    (plain,) = finish(tiny_pipeline, [start(tiny_pipeline, request8, 7)])
    assert torch.equal(ours, plain)


def test_settings_that_are_nearly_neutral_are_nearly_plain_guidance() -> None:
    """The formulas themselves meet plain guidance, not only the branches around them."""
    latent, rows = torch.randn(1, 4, 3, 3), torch.randn(2, 4, 3, 3)
    plain = Guidance(7.0, PLAIN_GUIDANCE, (1.0, 0.5, 0.0), has_pair=True)
    expected = plain.combine(1, 0.5, latent, rows)
    for plan in (
        GuidancePlan(apg=ApgPlan(momentum=1e-9, norm_threshold=1e9, eta=1.0)),
        GuidancePlan(rescale=1e-9),
    ):
        nearly = Guidance(7.0, plan, (1.0, 0.5, 0.0), has_pair=True)
        torch.testing.assert_close(
            nearly.combine(1, 0.5, latent, rows), expected, atol=1e-5, rtol=1e-5
        )


def test_a_scale_of_one_everywhere_is_the_conditional_row_to_the_bit(
    tiny_pipeline: Pipeline, request8: ImageRequest
) -> None:
    nowhere = GuidancePlan(interval=(0.0, 1e-6))
    run = start(tiny_pipeline, request8, 7, guidance_plan=nowhere)
    (ours,) = finish(tiny_pipeline, [run])
    alone = replace(request8, guidance=1.0)
    (conditional,) = finish(tiny_pipeline, [start(tiny_pipeline, alone, 7)])
    assert torch.equal(ours, conditional)
    assert run.guidance.num_rows == NUM_STEPS


@pytest.mark.parametrize("plan", [LATE, MIDDLE, APG, RAMPED])
@pytest.mark.parametrize("cache", [NO_REUSE, TEA, FB, FORECAST])
def test_the_rows_that_are_counted_are_those_that_the_layers_run(
    tiny_pipeline: Pipeline, request8: ImageRequest, plan: GuidancePlan, cache: CachePlan
) -> None:
    run = start(tiny_pipeline, request8, 7, cache, guidance_plan=plan)
    with counted_rows(tiny_pipeline) as rows:
        finish(tiny_pipeline, [run])
    assert sum(rows) == run.guidance.num_rows
    assert run.guidance.num_unguided_steps == (0 if plan == APG else len(unguided(run)))
    diagnostics = diagnose(tiny_pipeline, replace(request8, cache=cache, guidance_plan=plan))
    assert diagnostics.num_rows + diagnostics.num_saved_rows == 2 * NUM_STEPS
    assert diagnostics.num_rows == run.guidance.num_rows


def unguided(run: ImageRun) -> list[int]:
    sigmas = run.trajectory.sigmas[:-1]
    return [
        step
        for step, sigma in enumerate(sigmas)
        if scale_at(run.guidance.scale, run.guidance.plan, sigma) == 1.0
    ]


def test_a_step_at_which_rows_come_or_go_is_computed(
    tiny_pipeline: Pipeline, request8: ImageRequest
) -> None:
    always = replace(TEA, tea_distance=50.0, max_consecutive=8)
    request = replace(request8, num_steps=12, cache=replace(always, end=12), guidance_plan=MIDDLE)
    run = start(tiny_pipeline, request, 7, request.cache, guidance_plan=MIDDLE)
    guided = [run.guidance.has_unconditional(step) for step in range(12)]
    switches = {s for s in range(12) if s == 0 or guided[s] != guided[s - 1]}
    assert len(switches) == 3
    reused = set(diagnose(tiny_pipeline, request).reused_steps)
    assert reused == set(range(12)) - switches - {11}


def test_images_of_all_kinds_of_guidance_in_a_batch_equal_the_same_generated_alone(
    tiny_pipeline: Pipeline, request8: ImageRequest
) -> None:
    kinds = [
        ("a red fox", LATE, TEA, "Euler"),
        ("an old bridge in fog", MIDDLE, FORECAST, "Heun"),
        ("tea", APG, NO_REUSE, "UniPC"),
        ("tea", RAMPED, FB, "Euler a"),
        ("a red fox", PLAIN_GUIDANCE, NO_REUSE, "Euler"),
    ]

    def start_all() -> list[ImageRun]:
        return [
            start(tiny_pipeline, replace(request8, prompt=prompt), seed, cache, solver, plan)
            for seed, (prompt, plan, cache, solver) in enumerate(kinds)
        ]

    together_runs = start_all()
    together = finish(tiny_pipeline, together_runs)
    for run, in_batch, alone_run in zip(together_runs, together, start_all(), strict=True):
        (alone,) = finish(tiny_pipeline, [alone_run])
        torch.testing.assert_close(in_batch, alone, atol=1e-5, rtol=1e-5)
        assert run.guidance.num_rows == alone_run.guidance.num_rows


def test_a_preview_shows_the_guided_image_and_takes_no_note_of_it(
    tiny_pipeline: Pipeline, request8: ImageRequest
) -> None:
    def latents(with_previews: bool) -> list[Tensor]:
        run = start(tiny_pipeline, request8, 7, guidance_plan=APG)
        shown = []
        for done in denoise(tiny_pipeline.transformer, [run]):
            if with_previews:
                shown.append(estimate_image(run, done))
        if shown:  # the last step ends at the image itself
            torch.testing.assert_close(shown[-1], run.trajectory.latent_BCYX)
        return [run.trajectory.latent_BCYX]

    assert torch.equal(latents(True)[0], latents(False)[0])


def test_ramps_rise_from_one_to_the_scale() -> None:
    for ramp, middle in (("linear", 4.0), ("cosine", 4.0)):
        plan = GuidancePlan(ramp=ramp)  # type: ignore[arg-type]
        assert [scale_at(7.0, plan, sigma) for sigma in (1.0, 0.5, 0.0)] == pytest.approx(
            [1.0, middle, 7.0]
        )


def test_projection_removes_what_is_parallel_and_the_bound_shortens_the_rest() -> None:
    image = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    difference = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    across = ProjectedDifference(ApgPlan(eta=0.0)).update(image, difference)
    torch.testing.assert_close(across.flatten(), torch.tensor([0.0, 4.0]))
    bound = ProjectedDifference(ApgPlan(norm_threshold=1.0)).update(image, difference)
    assert bound.square().mean().sqrt() == pytest.approx(1.0)
    momentum = ProjectedDifference(ApgPlan(momentum=-0.5))
    momentum.update(image, difference)
    torch.testing.assert_close(momentum.update(image, difference), 0.5 * difference)


def test_rescaling_gives_the_conditional_row_s_deviation() -> None:
    conditional, guided = torch.randn(1, 4, 8, 8), 3.0 * torch.randn(1, 4, 8, 8)
    assert rescaled(guided, conditional, 1.0).std() == pytest.approx(float(conditional.std()))
    half = rescaled(guided, conditional, 0.5).std()
    assert half == pytest.approx(float(conditional.std() + guided.std()) / 2)


def test_the_calibrated_interval_is_the_checkpoint_s_or_everywhere_with_a_warning() -> None:
    preset = GuidancePlan(interval="calibrated")
    assert resolve_guidance(preset, CALIBRATED, 2) == (LATE, ())
    assert resolve_guidance(preset, UNCALIBRATED, 2) == (PLAIN_GUIDANCE, (UNCALIBRATED_INTERVAL,))
    assert resolve_guidance(LATE, UNCALIBRATED, 1) == (LATE, (NO_SECOND_ROW,))
    assert resolve_guidance(PLAIN_GUIDANCE, UNCALIBRATED, 1) == (PLAIN_GUIDANCE, ())


def test_an_image_is_guided_in_the_checkpoint_s_interval_and_says_so(
    tiny_pipeline: Pipeline, request8: ImageRequest
) -> None:
    calibrated = replace(tiny_pipeline, calibration=CALIBRATED)
    preset = replace(request8, guidance_plan=GuidancePlan(interval="calibrated"))
    diagnostics = diagnose(calibrated, preset)
    assert diagnostics.guidance == LATE
    assert diagnostics.num_unguided_steps == diagnostics.num_saved_rows > 0
    assert diagnostics.warnings == ()
    assert diagnose(tiny_pipeline, preset).warnings == (UNCALIBRATED_INTERVAL,)
