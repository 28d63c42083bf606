"""From a plan and a calibration to a step cache for one image."""

from dataclasses import dataclass
from functools import partial

from cache.calibration import UNCALIBRATED, Calibration
from cache.no_cache import NoCache
from cache.plan import CachePlan
from cache.policies import (
    EarlyPolicy,
    FirstBlockPolicy,
    FixedIntervalPolicy,
    NoiseLevelPolicy,
    Signal,
    TeaCachePolicy,
)
from cache.predictors import DampedTaylor, LastResidual
from cache.protocol import StepCache
from cache.residual_cache import Agree, ResidualCache


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What the API's values come to for a checkpoint; None where the policy is off."""

    tea: float | None
    fb: float | None


def calibration_of(plan: CachePlan, calibration: Calibration) -> Calibration:
    """Return what is known of the plan's TeaCache signal: a fit to another one tells nothing."""
    return calibration if calibration.signal == plan.tea_signal else UNCALIBRATED


def effective_thresholds(plan: CachePlan, calibration: Calibration) -> Thresholds:
    """Return the thresholds that the votes will use."""
    tea, fb = plan.tea_distance, plan.fb_threshold_scale
    return Thresholds(
        tea=None if tea is None else tea * calibration_of(plan, calibration).tea_scale,
        fb=None if fb is None else fb * calibration.fb_threshold,
    )


def build_step_cache(
    plan: CachePlan, calibration: Calibration, signal: Signal, agree: Agree = bool
) -> StepCache:
    """Return a fresh cache.

    `signal` is what TeaCache compares between steps; `agree` makes all processes that draw the
    image together take the same decision.
    """
    if not plan.is_on:
        return NoCache()
    window = (plan.start, plan.end)
    forecast = plan.forecast
    estimate = (
        partial(DampedTaylor, forecast.order) if forecast and forecast.order else LastResidual
    )
    if forecast is not None and forecast.interval is not None:
        policy = FixedIntervalPolicy(forecast.interval)
        return ResidualCache(window, plan.max_consecutive, policy, None, estimate, agree)
    thresholds = effective_thresholds(plan, calibration)
    early_policy: EarlyPolicy | None = None
    if thresholds.tea is not None:
        own = calibration_of(plan, calibration)
        if own.poly:
            early_policy = TeaCachePolicy(thresholds.tea, signal, own.poly, own.x_range)
        else:
            early_policy = NoiseLevelPolicy(thresholds.tea, own.profile)
    first_block = None if thresholds.fb is None else FirstBlockPolicy(thresholds.fb)
    return ResidualCache(window, plan.max_consecutive, early_policy, first_block, estimate, agree)
