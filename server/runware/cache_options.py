"""Step-cache plan of a task from its acceleration parameters, with warnings.

`acceleration` names a preset. A policy that the task sets itself, on or off, replaces the preset's
policy; the window and the limit of skips in a row apply to either.
"""

from dataclasses import dataclass, replace

from cache.calibration import DEFAULT_THRESHOLD
from cache.plan import CachePlan, ForecastPlan
from server.runware.schemas import AcceleratorOptions, ImageInference
from server.runware.validation import cache_window
from server.settings import CacheSettings

# The presets' forecast: a second order, and no contraction, were worse; docs/sampling.md.
FORECAST_ORDER, FORECAST_CONTRACTION = 1, 0.5
# TeaCache of a task that wants a forecast and names no cache.
FORECAST_DISTANCE = 0.8


@dataclass(frozen=True, kw_only=True, slots=True)
class _Policies:
    """What a preset, or the task itself, turns on; None is off."""

    tea: float | None = None
    relaxation: float = 1.0
    fb: float | None = None
    forecast: ForecastPlan | None = None


def build_cache_plan(
    task: ImageInference, settings: CacheSettings
) -> tuple[CachePlan, tuple[str, ...]]:
    """Return the plan of a checked task, and the warnings for its diagnostics."""
    options = task.acceleratorOptions
    start, end = cache_window(task)
    chosen = _preset(task, settings)
    if {"teaCache", "fbCache"} & options.model_fields_set:
        chosen = _Policies(
            tea=options.teaCacheDistance if options.teaCache else None,
            fb=fb_threshold_scale(options.fbCacheThreshold, settings) if options.fbCache else None,
        )
    if (requested := task.hunyuan.forecast) is not None:
        forecast = ForecastPlan(
            order=requested.order, interval=requested.interval, contraction=requested.contraction
        )
        chosen = replace(chosen, forecast=forecast)
        if requested.interval is not None:
            chosen = _Policies(forecast=forecast)
        elif chosen.tea is None and chosen.fb is None:
            chosen = _Policies(tea=FORECAST_DISTANCE, forecast=forecast)
    plan = CachePlan(
        start=start,
        end=end,
        max_consecutive=_limit(options, chosen.forecast),
        tea_distance=chosen.tea,
        tea_relaxation=chosen.relaxation,
        tea_signal=settings.tea_signal,
        fb_threshold_scale=chosen.fb,
        forecast=chosen.forecast,
    )
    return plan, tuple(_list_ignored(options, chosen.forecast))


def wants_fitted_grid(task: ImageInference, settings: CacheSettings) -> bool:
    """Return whether the steps go over sigmas fitted to the checkpoint.

    They do with a preset that skips steps, unless the task names a scheduler.
    """
    preset = task.acceleration or settings.default_acceleration
    return preset != "none" and task.scheduler == "Default"


def fb_threshold_scale(threshold: float, settings: CacheSettings) -> float:
    """Return the factor on the calibrated FBCache threshold that a value of the API stands for.

    On the parameter page lower values skip more steps; in older documentation, and in every
    implementation, higher values do. Both meanings meet at the default.
    """
    if settings.fb_cache_threshold_meaning == "documented":
        return (1 - threshold) / (1 - DEFAULT_THRESHOLD)
    return threshold / DEFAULT_THRESHOLD


def _preset(task: ImageInference, settings: CacheSettings) -> _Policies:
    forecast = ForecastPlan(order=FORECAST_ORDER, contraction=FORECAST_CONTRACTION)
    match task.acceleration or settings.default_acceleration:
        case "low":
            return _Policies(tea=settings.low_tea_distance, forecast=forecast)
        case "medium":
            return _Policies(tea=settings.medium_tea_distance, forecast=forecast)
        case "high":
            return _Policies(
                tea=settings.high_tea_distance,
                relaxation=settings.high_tea_relaxation,
                forecast=forecast,
            )
        case _:
            return _Policies()


def _limit(options: AcceleratorOptions, forecast: ForecastPlan | None) -> int:
    """Return the most steps skipped in a row: the task's value, or from a forecast's interval."""
    limit = options.cacheMaxConsecutiveSteps
    interval = None if forecast is None else forecast.interval
    if interval is None or "cacheMaxConsecutiveSteps" in options.model_fields_set:
        return limit
    return interval - 1


def _list_ignored(options: AcceleratorOptions, forecast: ForecastPlan | None) -> list[str]:
    """Return warnings of values without effect: a cache that is off, an interval too long."""
    given = options.model_fields_set
    limit = _limit(options, forecast)
    interval = None if forecast is None else forecast.interval
    too_long = interval is not None and interval - 1 > limit
    pairs = (("teaCacheDistance", "teaCache"), ("fbCacheThreshold", "fbCache"))
    warnings = [
        f"'acceleratorOptions.{threshold}' has no effect without '{flag}': true."
        for threshold, flag in pairs
        if threshold in given and not getattr(options, flag)
    ]
    if too_long:
        warnings.append(
            f"'acceleratorOptions.cacheMaxConsecutiveSteps' of {limit} shortens the forecast's "
            f"interval to {limit + 1}."
        )
    return warnings
