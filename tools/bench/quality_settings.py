"""Settings that `hyimage bench quality` measures: solvers, steps and step caches."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from cache.plan import NO_REUSE, CachePlan, ForecastPlan

# FBCache's threshold at the API's default, in the documented meaning: lower values reuse more.
_FB_DEFAULT_ROOM = 0.75


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """Which values are measured; the defaults of the API come first.

    `fb_threshold_scales` are multiples of FBCache's default threshold, `forecasts` pairs of order
    and interval. With `forecast_distances` TeaCache decides and a forecast replaces the residual.
    `naive_reuse` holds pairs of interval and share of the steps after which reuse ends.
    """

    truth_steps: int = 100
    euler_steps: tuple[int, ...] = (10, 12, 14, 16, 18, 20, 22, 25)
    tea_distances: tuple[float, ...] = (0.5, 0.25, 0.8, 1.0)
    fb_threshold_scales: tuple[float, ...] = (1.0, 0.6, 4 / 3)  # the last: the API's threshold 0
    forecast_distances: tuple[float, ...] = (0.5, 0.8, 1.0)
    forecasts: tuple[tuple[int, int], ...] = ((1, 2), (1, 3), (2, 3))
    # Savings of 1.5 and 2: every second or third step, whatever happens there.
    naive_reuse: tuple[tuple[int, float], ...] = ((2, 0.75), (3, 0.83))
    schedulers: tuple[str, ...] = (
        "DPM++ 2M", "UniPC", "LMS", "IPNDMScheduler", "Heun", "DEISMultistepScheduler",
    )  # fmt: skip
    scheduler_steps: tuple[int, ...] = (10, 20, 30)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One way of generating. `threshold` is the API's value or, for a forecast, its interval."""

    policy: str
    threshold: float | None
    scheduler: str
    num_steps: int
    plan: CachePlan


def plain(scheduler: str, num_steps: int) -> Setting:
    """Return a scheduler without any reuse."""
    return Setting(
        policy="none", threshold=None, scheduler=scheduler, num_steps=num_steps, plan=NO_REUSE
    )


def list_settings(base_steps: int, sweep: Sweep) -> Iterator[Setting]:
    """Yield what is measured, plain Euler first."""
    for steps in sorted({*sweep.euler_steps, base_steps}):
        yield plain("Euler", steps)
    plan = CachePlan(start=0, end=base_steps)
    for distance in sweep.tea_distances:
        yield _cached("teaCache", distance, replace(plan, tea_distance=distance), base_steps)
    for scale in sweep.fb_threshold_scales:
        scaled = replace(plan, fb_threshold_scale=scale)
        threshold = round(1 - _FB_DEFAULT_ROOM * scale, 3)
        yield _cached("fbCache", threshold, scaled, base_steps)
    for distance in sweep.forecast_distances:
        both = replace(plan, tea_distance=distance, forecast=ForecastPlan(order=1))
        yield _cached("teaCache+forecast", distance, both, base_steps)
    for order, interval in sweep.forecasts:
        fixed = _every_nth(order, interval, base_steps)
        yield _cached(f"forecast order {order}", interval, fixed, base_steps)
    for interval, share in sweep.naive_reuse:
        fixed = _every_nth(0, interval, round(share * base_steps))
        yield _cached("naive", interval, fixed, base_steps)
    for scheduler in sweep.schedulers:
        for steps in sweep.scheduler_steps:
            yield plain(scheduler, steps)


def _every_nth(order: int, interval: int, end: int) -> CachePlan:
    """Return the plan that computes every n-th step up to `end`."""
    return CachePlan(
        start=0,
        end=end,
        forecast=ForecastPlan(order=order, interval=interval),
        max_consecutive=interval - 1,
    )


def _cached(policy: str, threshold: float, plan: CachePlan, num_steps: int) -> Setting:
    return Setting(
        policy=policy, threshold=threshold, scheduler="Euler", num_steps=num_steps, plan=plan
    )
