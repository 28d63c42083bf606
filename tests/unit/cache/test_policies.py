"""Step caches on made-up hidden states: what they compute, what they reuse, and how they count."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cache.build import build_step_cache, effective_thresholds
from cache.calibration import UNCALIBRATED
from cache.no_cache import NoCache
from cache.plan import NO_REUSE, CachePlan, ForecastPlan
from cache.policies import NoiseLevelPolicy, relative_l1
from cache.predictors import DampedTaylor, LastResidual
from cache.protocol import RunFirstBlock, StepCache, StepContext
from cache.residual_cache import ResidualCache

NUM_STEPS = 12


class Layers:
    """A first layer and the rest, that count their calls."""

    def __init__(self) -> None:
        self.num_first, self.num_rest = 0, 0

    def first(self, x: Tensor) -> Tensor:
        self.num_first += 1
        return x * 1.5

    def rest(self, x: Tensor) -> Tensor:
        self.num_rest += 1
        return x + x.square()


def states(step: int, rate: float) -> Tensor:
    base = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    return base * (1 + rate * step)


def walk(
    cache: StepCache, rate: float = 0.02, layers: Layers | None = None, num_evaluations: int = 1
) -> list[Tensor]:
    """Take a cache through all steps; return the outputs of all evaluations."""
    layers = layers or Layers()
    outputs: list[Tensor] = []
    for step in range(NUM_STEPS):
        for index in range(num_evaluations):
            sigma = 1 - (step + index / num_evaluations) / NUM_STEPS
            context = StepContext(step, NUM_STEPS, index, sigma)
            evaluation = cache.evaluate(context, states(step, rate))
            sent: Tensor | None = None
            while True:
                try:
                    call = evaluation.send(sent)  # type: ignore[arg-type]
                except StopIteration as e:
                    outputs.append(e.value)
                    break
                run = layers.first if isinstance(call, RunFirstBlock) else layers.rest
                sent = run(call.x_BSD)
    return outputs


def build(**fields: object) -> ResidualCache:
    plan = CachePlan(**{"start": 0, "end": NUM_STEPS, **fields})  # type: ignore[arg-type]
    cache = build_step_cache(plan, UNCALIBRATED, lambda context, x: x[:1, 1:])
    assert isinstance(cache, ResidualCache)
    return cache


def test_no_plan_is_no_cache() -> None:
    cache = build_step_cache(NO_REUSE, UNCALIBRATED, lambda context, x: x)
    assert isinstance(cache, NoCache)


@pytest.mark.parametrize(
    "fields",
    [
        {"tea_distance": 0.0},
        {"fb_threshold_scale": 0.0},
        {"tea_distance": 0.0, "fb_threshold_scale": 0.0},
        {"tea_distance": 1.0, "fb_threshold_scale": 0.0},
        {"forecast": ForecastPlan(order=1, interval=3), "end": 3},
    ],
)
def test_a_cache_that_never_reuses_is_no_cache_to_the_bit(fields: dict[str, object]) -> None:
    cache = build(**fields)
    outputs = walk(cache)
    assert cache.reused_steps == []
    assert cache.num_computed_evaluations == NUM_STEPS
    for ours, plain in zip(outputs, walk(NoCache()), strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize(
    "fields",
    [
        {"tea_distance": 1.0},
        {"fb_threshold_scale": 4.0},
        {"tea_distance": 1.0, "fb_threshold_scale": 4.0},
        {"forecast": ForecastPlan(order=2, interval=5), "max_consecutive": 5},
    ],
)
def test_the_first_and_the_last_step_are_always_computed(fields: dict[str, object]) -> None:
    cache = build(**fields)
    walk(cache, rate=1e-4)
    assert cache.reused_steps
    assert not {0, NUM_STEPS - 1} & set(cache.reused_steps)


def test_counts_equal_the_calls_of_the_layers() -> None:
    for fields in (
        {"tea_distance": 0.1},
        {"fb_threshold_scale": 1.0},
        {"forecast": ForecastPlan(order=1, interval=2)},
    ):
        cache, layers = build(**fields), Layers()
        walk(cache, layers=layers)
        assert 0 < len(cache.reused_steps) == NUM_STEPS - layers.num_rest
        assert cache.num_computed_evaluations == layers.num_rest
        looks_at_first = "fb_threshold_scale" in fields
        assert layers.num_first == (NUM_STEPS if looks_at_first else layers.num_rest)


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_no_more_steps_in_a_row_are_reused_than_allowed(limit: int) -> None:
    cache = build(tea_distance=1.0, max_consecutive=limit)
    walk(cache, rate=1e-5)
    expected = [s for s in range(1, NUM_STEPS - 1) if s % (limit + 1)]
    assert cache.reused_steps == expected


def test_nothing_outside_the_window_is_reused() -> None:
    cache = build(tea_distance=1.0, start=4, end=7)
    walk(cache, rate=1e-5)
    assert cache.reused_steps == [4, 5, 6]


def test_a_larger_distance_reuses_more() -> None:
    counts = []
    for distance in (0.0, 0.02, 0.05, 0.2, 1.0):
        cache = build(tea_distance=distance, max_consecutive=5)
        walk(cache)
        counts.append(len(cache.reused_steps))
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] > counts[1]


def test_changes_accumulate_over_reused_steps_and_start_again_after_a_computed_one() -> None:
    """The states change by about 2 % a step: two steps fit under 5 %, the third does not."""
    cache = build(tea_distance=0.05, max_consecutive=5)
    walk(cache, rate=0.02)
    assert cache.reused_steps[:4] == [1, 2, 4, 5]


def test_rows_of_an_image_decide_together_by_the_one_that_changes_most() -> None:
    class OneRowMoves(Layers):
        def first(self, x: Tensor) -> Tensor:
            moved = super().first(x)
            moved[1] = moved[1] * 2.0**self.num_first
            return moved

    cache = build(fb_threshold_scale=1.0)
    walk(cache, rate=1e-5, layers=OneRowMoves())
    assert cache.reused_steps == []
    calm = build(fb_threshold_scale=1.0)
    walk(calm, rate=1e-5)
    assert calm.reused_steps


def test_both_caches_reuse_only_what_both_would() -> None:
    tea = build(tea_distance=0.05, max_consecutive=5)
    both = build(tea_distance=0.05, fb_threshold_scale=1e-3, max_consecutive=5)
    walk(tea)
    walk(both)
    assert tea.reused_steps
    assert both.reused_steps == []


def test_two_evaluations_of_a_step_share_its_decision_and_not_its_residual() -> None:
    cache, layers = build(tea_distance=1.0, max_consecutive=1), Layers()
    walk(cache, rate=1e-5, layers=layers, num_evaluations=2)
    assert cache.reused_steps == [1, 3, 5, 7, 9]
    assert cache.num_computed_evaluations == layers.num_rest == 2 * (NUM_STEPS - 5)


def test_a_reused_step_adds_what_the_layers_added_before() -> None:
    cache = build(tea_distance=1.0, max_consecutive=1)
    outputs = walk(cache, rate=1e-3)
    residual = outputs[0] - states(0, 1e-3)
    torch.testing.assert_close(outputs[1], states(1, 1e-3) + residual)


@pytest.mark.parametrize("order", [1, 2])
def test_a_forecast_is_exact_for_a_polynomial_of_its_order(order: int) -> None:
    estimate = DampedTaylor(order)
    curve_BSD = torch.tensor([[[1.0, -2.0, 3.0], [2.0, 0.5, -1.0]]])
    for sigma in (0.9, 0.85, 0.7, 0.6)[: order + 2]:
        estimate.keep(sigma, curve_BSD * sigma**order)
    torch.testing.assert_close(estimate.at(0.5), curve_BSD * 0.5**order)


def test_a_forecast_holds_until_it_has_been_seen_to_come_true() -> None:
    forecast, hold = DampedTaylor(1), LastResidual()
    for sigma, value in ((0.9, 1.0), (0.8, 2.0)):
        for estimate in (forecast, hold):
            estimate.keep(sigma, torch.full((1, 2, 3), value))
        assert torch.equal(forecast.at(0.5), hold.at(0.5))


def test_each_channel_of_each_row_takes_the_share_of_the_forecast_that_came_true() -> None:
    forecast = DampedTaylor(1)
    for sigma, values in (
        (0.9, [0.0, 0.0, 0.0, 0.0]),
        (0.8, [1.0, 1.0, 1.0, 0.0]),
        (0.7, [2.0, 1.25, 0.0, 0.0]),  # as forecast, a quarter of it, the other way, nothing
    ):
        forecast.keep(sigma, torch.tensor(values).expand(1, 5, 4))
    expected = torch.tensor([3.0, 1.25 + 0.25 * 0.25, 0.0, 0.0]).expand(1, 5, 4)
    torch.testing.assert_close(forecast.at(0.6), expected)


def test_a_forecast_goes_with_the_decisions_of_other_policies() -> None:
    alone = build(tea_distance=0.1)
    with_forecast = build(tea_distance=0.1, forecast=ForecastPlan(order=1))
    for cache in (alone, with_forecast):
        walk(cache)
    assert len(alone.reused_steps) > 0
    assert alone.reused_steps == with_forecast.reused_steps


def test_a_profile_counts_the_change_between_noise_levels() -> None:
    policy = NoiseLevelPolicy(0.25, profile=((1.0, 0.0), (0.5, 0.4), (0.0, 1.0)))
    x = torch.zeros(1, 2, 2)
    contexts = [StepContext(i, 5, 0, sigma) for i, sigma in enumerate((1.0, 0.8, 0.6, 0.5, 0.1))]
    decisions = []
    for context in contexts:
        decisions.append(policy.should_skip(context, x, is_allowed=context.step > 0))
        policy.update(decisions[-1])
    assert decisions == [False, True, False, True, False]


def test_relative_change_of_nothing_is_nothing() -> None:
    assert relative_l1(torch.zeros(3), torch.zeros(3)) == 0.0


def test_thresholds_say_what_is_on() -> None:
    thresholds = effective_thresholds(
        CachePlan(start=0, end=9, fb_threshold_scale=0.5), UNCALIBRATED
    )
    assert (thresholds.tea, thresholds.fb) == (None, 0.06)


def test_a_calibration_of_one_signal_says_nothing_of_another() -> None:
    calibrated = replace(UNCALIBRATED, fingerprint="f" * 16, tea_scale=0.1)
    plan = CachePlan(start=0, end=9, tea_distance=0.5)
    assert effective_thresholds(plan, calibrated).tea == pytest.approx(0.05)
    scheduled = replace(plan, tea_signal="schedule")
    assert effective_thresholds(scheduled, calibrated).tea == 0.5
