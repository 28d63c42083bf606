"""Estimates: learned means, similar modes, and the turns of interleaved jobs."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.request import ImageRequest
from server.tasks.estimates import Estimates, Mode, Work, finish_times

REQUEST = ImageRequest(
    prompt="a fox", width_px=1024, height_px=1024, num_steps=10, guidance=5.0, seeds=(1, 2)
)
MODE = Mode.of(REQUEST)


def learned() -> Estimates:
    estimates = Estimates()
    estimates.learn("prefill", MODE, 0.5)
    estimates.learn("step", MODE, 1.0)
    estimates.learn("decode", MODE, 1.5)
    return estimates


def test_nothing_is_estimated_before_anything_ran() -> None:
    assert Estimates().work(REQUEST, 1, 0) is None


def test_a_task_takes_its_steps_and_a_prefill_and_decode_for_each_image() -> None:
    work = learned().work(REQUEST, 2, 0)
    assert work is not None
    assert work.steps == 20
    assert work.steps * work.step_s == pytest.approx(20 * 1.0 + 2 * 2.0)


def test_an_image_of_half_the_pixels_takes_half_as_long() -> None:
    half = Mode(MODE.pixels // 2, MODE.rows, MODE.cache, MODE.scheduler)
    assert learned().seconds("step", half) == pytest.approx(0.5)


def test_the_mean_follows_what_is_measured() -> None:
    estimates = learned()
    for _ in range(30):
        estimates.learn("step", MODE, 3.0)
    assert estimates.seconds("step", MODE) == pytest.approx(3.0, rel=0.01)


def test_a_prefill_is_learned_by_the_number_of_input_images() -> None:
    estimates = Estimates()
    one, three = replace(MODE, num_inputs=1), replace(MODE, num_inputs=3)
    estimates.learn("prefill", MODE, 0.1)
    estimates.learn("prefill", three, 9.0)
    assert estimates.seconds("prefill", MODE) == 0.1
    assert estimates.seconds("prefill", one) == 0.1
    assert estimates.seconds("prefill", replace(three, pixels=2 * three.pixels)) == 18.0


def test_two_active_jobs_take_turns_and_a_waiting_one_takes_the_first_free_place() -> None:
    active, waiting = finish_times([Work(2, 1.0), Work(4, 1.0)], [Work(1, 1.0)], 2)
    assert active == [
        4.0,
        8.0 - 1.0,
    ]
    assert waiting == [6.0]


@given(
    st.lists(st.tuples(st.integers(1, 9), st.floats(0.1, 5.0)), min_size=1, max_size=8),
    st.integers(1, 4),
)
def test_the_last_job_ends_when_all_work_is_done(
    works: list[tuple[int, float]], max_active: int
) -> None:
    jobs = [Work(steps, step_s) for steps, step_s in works]
    active, waiting = finish_times(jobs[:max_active], jobs[max_active:], max_active)
    total = sum(steps * step_s for steps, step_s in works)
    assert max((*active, *waiting)) == pytest.approx(total)
