"""Step cache construction: from a plan and a calibration to the cache of one image."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cache.calibration import UNCALIBRATED, Calibration
from cache.no_cache import NoCache
from cache.plan import CachePlan, ForecastPlan
from cache.policies import (
    EarlyPolicy,
    FirstBlockPolicy,
    FixedIntervalPolicy,
    NoiseLevelPolicy,
    Signal,
    TeaCachePolicy,
)
from cache.predictors import DampedTaylor, LastResidual, ResidualPredictor, ScaledHermite
from cache.protocol import StepCache
from cache.residual_cache import Agree, ResidualCache


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The API's values in a checkpoint's own units; None where the policy is off."""

    tea: float | None
    fb: float | None


def calibration_of(plan: CachePlan, calibration: Calibration) -> Calibration:
    """Return the calibration if it was fitted to the plan's TeaCache signal, else UNCALIBRATED."""
    return calibration if calibration.signal == plan.tea_signal else UNCALIBRATED


def effective_thresholds(plan: CachePlan, calibration: Calibration) -> Thresholds:
    """Return the thresholds that the policies use."""
    tea, fb = plan.tea_distance, plan.fb_threshold_scale
    return Thresholds(
        tea=None if tea is None else tea * calibration_of(plan, calibration).tea_scale,
        fb=None if fb is None else fb * calibration.fb_threshold,
    )


def build_step_cache(
    plan: CachePlan, calibration: Calibration, signal: Signal, agree: Agree = bool
) -> StepCache:
    """Return a fresh cache.

    `signal` is what TeaCache compares between steps; `agree` makes all ranks that generate the
    image take the same decision.
    """
    if not plan.is_on:
        return NoCache()
    window = (plan.start, plan.end)
    forecast = plan.forecast
    new_predictor = _choose_predictor(forecast)
    if forecast is not None and forecast.interval is not None:
        policy = FixedIntervalPolicy(forecast.interval)
        return ResidualCache(window, plan.max_consecutive, policy, None, new_predictor, agree)
    thresholds = effective_thresholds(plan, calibration)
    early_policy: EarlyPolicy | None = None
    if thresholds.tea is not None:
        fitted = calibration_of(plan, calibration)
        if fitted.poly:
            early_policy = TeaCachePolicy(
                thresholds.tea, signal, fitted.poly, fitted.x_range, plan.tea_relaxation
            )
        else:
            early_policy = NoiseLevelPolicy(thresholds.tea, fitted.profile)
    first_block = None if thresholds.fb is None else FirstBlockPolicy(thresholds.fb)
    return ResidualCache(
        window, plan.max_consecutive, early_policy, first_block, new_predictor, agree
    )


def _choose_predictor(forecast: ForecastPlan | None) -> Callable[[], ResidualPredictor]:
    """Return what makes the predictor of one evaluation's residuals."""
    if forecast is None or forecast.order == 0:
        return LastResidual
    if forecast.contraction is None:
        return partial(DampedTaylor, forecast.order)
    return partial(ScaledHermite, forecast.order, forecast.contraction)
