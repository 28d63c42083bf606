"""Settings that `hyimage bench quality` measures: solvers, grids, step caches and presets."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import get_args

from cache.plan import NO_REUSE, CachePlan, ForecastPlan
from server.runware.cache_options import build_cache_plan, wants_fitted_grid
from server.runware.schemas import Acceleration, ImageInference
from server.settings import CacheSettings

# FBCache's threshold at the API's default, in the documented meaning: lower values reuse more.
_FB_DEFAULT_ROOM = 0.75


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """Which values are measured; the defaults of the API come first.

    `fb_threshold_scales` are multiples of FBCache's default threshold, `intervals` pairs of order
    and interval. With `forecast_distances` TeaCache decides and a forecast replaces the residual,
    of Taylor's kind and with each of the `contractions`; with `cached_schedulers` another solver
    than Euler takes the steps. `presets` are measured at their own numbers of steps.
    """

    truth_steps: int = 100
    euler_steps: tuple[int, ...] = (8, 10, 12, 15, 18, 20, 22, 25)
    fitted_steps: tuple[int, ...] = (8, 12, 15, 20)
    tea_distances: tuple[float, ...] = (0.5, 0.8, 1.0)
    fb_threshold_scales: tuple[float, ...] = (1.0, 4 / 3)  # the last: the API's threshold 0
    forecast_distances: tuple[float, ...] = (0.8, 1.0)
    contractions: tuple[float, ...] = (0.5, 0.7)
    intervals: tuple[tuple[int, int], ...] = ((0, 2), (1, 2), (0, 3), (1, 3))
    cached_schedulers: tuple[str, ...] = ("DPM++ 2M",)
    schedulers: tuple[str, ...] = (
        "DPM++ 2M", "UniPC", "LMS", "IPNDMScheduler", "DEISMultistepScheduler",
        "Euler Karras", "Euler Exponential", "Euler Beta",
    )  # fmt: skip
    scheduler_steps: tuple[int, ...] = (8, 12, 15, 20)
    presets: tuple[str, ...] = tuple(name for name in get_args(Acceleration) if name != "none")
    preset_steps: tuple[int, ...] = (20, 30)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One way of generating. `threshold` is the API's value or, for an interval, its steps."""

    policy: str
    threshold: float | None
    scheduler: str
    num_steps: int
    plan: CachePlan
    is_grid_fitted: bool = False

    @property
    def is_plain_solver(self) -> bool:
        """Return whether it is what users of any server could choose: a name and steps."""
        return self.policy == "none"


def plain(scheduler: str, num_steps: int) -> Setting:
    """Return a scheduler without any reuse."""
    return Setting(
        policy="none", threshold=None, scheduler=scheduler, num_steps=num_steps, plan=NO_REUSE
    )


def preset(name: str, num_steps: int) -> Setting:
    """Return what the server makes of an `acceleration` with its default settings."""
    task = ImageInference.model_validate(
        {
            "taskType": "imageInference",
            "taskUUID": str(uuid.uuid4()),
            "model": "runware:180@1",
            "positivePrompt": "any prompt",
            "steps": num_steps,
            "acceleration": name,
        }
    )
    settings = CacheSettings.model_validate({})
    return Setting(
        policy=f"preset {name}",
        threshold=None,
        scheduler=task.scheduler,
        num_steps=num_steps,
        plan=build_cache_plan(task, settings)[0],
        is_grid_fitted=wants_fitted_grid(task, settings),
    )


def list_settings(base_steps: int, sweep: Sweep) -> Iterator[Setting]:
    """Yield what is measured: plain solvers first, Euler before them."""
    for steps in sorted({*sweep.euler_steps, base_steps}):
        yield plain("Euler", steps)
    for scheduler in sweep.schedulers:
        for steps in sweep.scheduler_steps:
            yield plain(scheduler, steps)
    for steps in sweep.fitted_steps:
        yield replace(plain("Default", steps), policy="fitted grid", is_grid_fitted=True)
    for name in sweep.presets:
        for steps in sweep.preset_steps:
            yield preset(name, steps)
    yield from _list_caches(base_steps, sweep)


def _list_caches(base_steps: int, sweep: Sweep) -> Iterator[Setting]:
    plan = CachePlan(start=0, end=base_steps)
    for distance in sweep.tea_distances:
        yield _cached("teaCache", distance, replace(plan, tea_distance=distance), base_steps)
    for scale in sweep.fb_threshold_scales:
        scaled = replace(plan, fb_threshold_scale=scale)
        yield _cached("fbCache", round(1 - _FB_DEFAULT_ROOM * scale, 3), scaled, base_steps)
    for distance in sweep.forecast_distances:
        tea = replace(plan, tea_distance=distance)
        taylor = replace(tea, forecast=ForecastPlan(order=1))
        yield _cached("teaCache, Taylor", distance, taylor, base_steps)
        for contraction in sweep.contractions:
            hermite = replace(tea, forecast=ForecastPlan(order=1, contraction=contraction))
            yield _cached(f"teaCache, Hermite {contraction:g}", distance, hermite, base_steps)
        for scheduler in sweep.cached_schedulers:
            name = f"teaCache, {scheduler}"
            yield replace(_cached(name, distance, tea, base_steps), scheduler=scheduler)
    for order, interval in sweep.intervals:
        fixed = replace(
            plan,
            forecast=ForecastPlan(order=order, interval=interval),
            max_consecutive=interval - 1,
        )
        yield _cached(f"every n-th, order {order}", interval, fixed, base_steps)


def _cached(policy: str, threshold: float, plan: CachePlan, num_steps: int) -> Setting:
    return Setting(
        policy=policy, threshold=threshold, scheduler="Euler", num_steps=num_steps, plan=plan
    )
