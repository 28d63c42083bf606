"""The memory budget: larger jobs need more, and only what fits runs together."""

from dataclasses import replace

import pytest

from cache.plan import CachePlan
from pipeline.load import Pipeline
from pipeline.request import ImageRequest
from pipeline.settings import PipelineSettings
from server.worker.memory import JobNeeds, MemoryBudget, budget_of, count_needs

REQUEST = ImageRequest(
    prompt="a fox", width_px=256, height_px=256, num_steps=4, guidance=5.0, seeds=(1,)
)


def test_needs_grow_with_what_is_held(tiny_pipeline: Pipeline) -> None:
    needs = count_needs(tiny_pipeline, PipelineSettings(image_inputs=True))
    plain = needs(REQUEST)
    cached = needs(replace(REQUEST, cache=CachePlan(start=0, end=4, tea_distance=0.5)))
    rewritten = needs(replace(REQUEST, rewrite="think"))
    one, three = (needs(replace(REQUEST, images=(b"png",) * n)) for n in (1, 3))
    small = needs(replace(REQUEST, width_px=128, height_px=128))
    assert plain.held > 0
    assert cached.held > plain.held
    assert rewritten.held > plain.held
    assert three.held - plain.held == pytest.approx(3 * (one.held - plain.held), rel=0.01)
    assert three.step > one.step >= plain.step
    assert small.step < plain.step
    assert needs(replace(REQUEST, width_px=None, height_px=None)).step >= plain.step


def test_images_that_are_generated_together_need_more(tiny_pipeline: Pipeline) -> None:
    two = replace(REQUEST, seeds=(1, 2))
    batched = count_needs(replace(tiny_pipeline, batch_size=2), PipelineSettings(batch_size=2))
    one_by_one = count_needs(tiny_pipeline, PipelineSettings())
    assert batched(two).step == 2 * one_by_one(two).step


def test_jobs_start_while_all_they_hold_and_the_largest_step_fit() -> None:
    budget = MemoryBudget(100, lambda request: JobNeeds(held=20, step=30))
    assert budget.fits([REQUEST] * 2, REQUEST)
    assert not budget.fits([REQUEST] * 3, REQUEST)


def test_alone_every_job_may_try() -> None:
    assert MemoryBudget(0, lambda request: JobNeeds(held=9, step=9)).fits([], REQUEST)


def test_this_machine_has_room_for_the_tiny_checkpoint(tiny_pipeline: Pipeline) -> None:
    budget = budget_of(tiny_pipeline, PipelineSettings())
    assert budget.fits([REQUEST], REQUEST)
