"""Guidance of any kind: an image does not depend on its batch, and its rows are counted right."""

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.plan import NO_REUSE, CachePlan, ForecastPlan
from pipeline.denoise import ImageRun
from pipeline.guidance import scale_at
from pipeline.guidance_plan import ApgPlan, GuidancePlan
from pipeline.load import Pipeline
from pipeline.request import ImageRequest
from tests.unit.pipeline.runs import counted_rows, finish, start

NUM_STEPS = 5
LEVELS = st.floats(0.0, 1.0)
PLANS = st.builds(
    GuidancePlan,
    interval=st.tuples(LEVELS, LEVELS)
    .filter(lambda pair: pair[0] != pair[1])
    .map(lambda pair: (min(pair), max(pair))),
    apg=st.builds(
        ApgPlan,
        momentum=st.floats(-1.0, 1.0),
        norm_threshold=st.none() | st.floats(0.05, 5.0),
        eta=st.floats(0.0, 1.0),
    ),
    rescale=st.floats(0.0, 1.0),
    ramp=st.sampled_from(("none", "linear", "cosine")),
)
CACHES = st.sampled_from(
    (
        NO_REUSE,
        CachePlan(start=0, end=NUM_STEPS, tea_distance=0.5),
        CachePlan(start=0, end=NUM_STEPS, forecast=ForecastPlan(order=1, interval=2)),
    )
)


@settings(max_examples=6, deadline=None)
@given(plans=st.lists(st.tuples(PLANS, CACHES), min_size=2, max_size=3))
def test_an_image_is_the_same_alone_and_in_a_batch_whatever_guides_it(
    tiny_pipeline: Pipeline, plans: list[tuple[GuidancePlan, CachePlan]]
) -> None:
    request = ImageRequest(
        prompt="a red fox", width_px=256, height_px=256, num_steps=NUM_STEPS, guidance=5.0, seeds=()
    )
    requests = [replace(request, prompt=f"{number} foxes") for number in range(len(plans))]

    def start_one(seed: int) -> ImageRun:
        plan, cache = plans[seed]
        return start(tiny_pipeline, requests[seed], seed, cache, "Euler", plan)

    runs = [start_one(seed) for seed in range(len(plans))]
    with counted_rows(tiny_pipeline) as rows:
        together = finish(tiny_pipeline, runs)
    assert sum(rows) == sum(run.guidance.num_rows for run in runs)
    for seed, in_batch in enumerate(together):
        (alone,) = finish(tiny_pipeline, [start_one(seed)])
        torch.testing.assert_close(in_batch, alone, atol=1e-4, rtol=1e-4)


@given(plan=PLANS, sigma=LEVELS, scale=st.floats(1.1, 50.0))
def test_the_scale_of_a_step_is_between_none_and_the_request_s(
    plan: GuidancePlan, sigma: float, scale: float
) -> None:
    assert plan.interval != "calibrated"
    low, high = plan.interval
    at = scale_at(scale, plan, sigma)
    assert 1.0 <= at <= scale * (1 + 1e-12)
    if not low <= sigma <= high:
        assert at == 1.0
