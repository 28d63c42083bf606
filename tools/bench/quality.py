"""Which settings are worth their time: schedulers, steps and step caches, against what they copy.

Every image is compared with two: the uncached Euler image of the base number of steps, which
a cache tries to save work on, and the uncached image of 100 steps, which all solvers head for.
Plain Euler with as many model evaluations is the bar: below it, fewer steps would be better.
"""

import csv
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cache.build import effective_thresholds
from cache.plan import NO_REUSE, CachePlan, ForecastPlan
from pipeline.load import Pipeline
from pipeline.request import ImageRequest
from tools.bench.images import Generated, generate_pixels
from tools.charts import Points, plot_chart
from tools.similarity import Pixels, psnr, ssim

TRUTH_STEPS = 100
MAX_PSNR = 99.0  # stands for equal images, in medians and in JSON

# TeaCache distances and multiples of FBCache's default threshold; the defaults first.
TEA_DISTANCES = (0.5, 0.25, 0.8, 1.0)
FB_READINESS = (1.0, 0.6, 4 / 3)  # the last is the API's threshold 0
FORECAST_DISTANCES = (0.5, 0.8, 1.0)  # TeaCache decides, a forecast stands in
FORECASTS = ((1, 2), (1, 3), (2, 3))
SCHEDULERS = ("DPM++ 2M", "UniPC", "LMS", "IPNDMScheduler", "Heun", "DEISMultistepScheduler")
SCHEDULER_STEPS = (10, 20, 30)
EULER_STEPS = (10, 12, 14, 16, 18, 20, 22, 25)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One way of generating. `threshold` is the API's value or, for a forecast, its interval."""

    policy: str
    threshold: float | None
    scheduler: str
    num_steps: int
    plan: CachePlan


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Medians over the prompts. PSNR in dB, seconds with decoding.

    `psnr` and `ssim` are against the uncached image of the base steps, `psnr_100` and `ssim_100`
    against that of 100 steps; `euler_psnr` and `euler_ssim` are what plain Euler reaches against
    the uncached image with as many evaluations.
    """

    policy: str
    threshold: float | None
    effective_threshold: float | None
    scheduler: str
    steps: int
    evaluations: float
    saving: float
    psnr: float
    ssim: float
    psnr_100: float
    ssim_100: float
    euler_psnr: float | None
    euler_ssim: float | None
    seconds: float


def list_settings(base_steps: int, with_schedulers: bool) -> Iterator[Setting]:
    """Yield what is measured, plain Euler first."""
    for steps in sorted({*EULER_STEPS, base_steps}):
        yield _plain("Euler", steps)
    plan = CachePlan(start=0, end=base_steps)
    for distance in TEA_DISTANCES:
        yield _cached("teaCache", distance, replace(plan, tea_distance=distance), base_steps)
    for fb_threshold_scale in FB_READINESS:
        # The documented meaning: lower thresholds reuse more.
        threshold = round(1 - 0.75 * fb_threshold_scale, 3)
        yield _cached(
            "fbCache", threshold, replace(plan, fb_threshold_scale=fb_threshold_scale), base_steps
        )
    for distance in FORECAST_DISTANCES:
        both = replace(plan, tea_distance=distance, forecast=ForecastPlan(order=1))
        yield _cached("teaCache+forecast", distance, both, base_steps)
    for order, interval in FORECASTS:
        yield _fixed(f"forecast order {order}", interval, order, interval, base_steps, base_steps)
    # Naive reuse at savings of 1.5 and 2: every second or third step, whatever happens there.
    yield _fixed("naive", 2, 0, 2, round(0.75 * base_steps), base_steps)
    yield _fixed("naive", 3, 0, 3, round(0.83 * base_steps), base_steps)
    if with_schedulers:
        for scheduler in SCHEDULERS:
            for steps in SCHEDULER_STEPS:
                yield _plain(scheduler, steps)


def _fixed(
    policy: str, threshold: float, order: int, interval: int, end: int, num_steps: int
) -> Setting:
    plan = CachePlan(
        start=0,
        end=end,
        forecast=ForecastPlan(order=order, interval=interval),
        max_consecutive=interval - 1,
    )
    return _cached(policy, threshold, plan, num_steps)


def _plain(scheduler: str, num_steps: int) -> Setting:
    return Setting(
        policy="none", threshold=None, scheduler=scheduler, num_steps=num_steps, plan=NO_REUSE
    )


def _cached(policy: str, threshold: float, plan: CachePlan, num_steps: int) -> Setting:
    return Setting(
        policy=policy, threshold=threshold, scheduler="Euler", num_steps=num_steps, plan=plan
    )


def run_quality_bench(
    pipeline: Pipeline,
    requests: Sequence[ImageRequest],
    settings: Sequence[Setting],
    base_steps: int,
    advance: Callable[[], None],
    keep: Callable[[Sequence[Row]], None],
) -> list[Row]:
    """Generate every request with every setting.

    `advance` is called after each image, `keep` with all rows so far after each setting: a run
    takes long, and what stops it costs only the setting it was at.
    """

    def generate_all(setting: Setting) -> list[Generated]:
        generated = []
        for request in requests:
            variant = replace(
                request,
                scheduler=setting.scheduler,
                num_steps=setting.num_steps,
                cache=setting.plan,
            )
            generated.append(generate_pixels(pipeline, variant))
            advance()
        return generated

    ends = [d.pixels_yx3 for d in generate_all(_plain("Euler", TRUTH_STEPS))]
    base_setting = _plain("Euler", base_steps)
    base = generate_all(base_setting)
    bases = [d.pixels_yx3 for d in base]
    rows: list[Row] = []
    euler: dict[float, tuple[float, float]] = {}
    for setting in settings:
        generated = base if setting == base_setting else generate_all(setting)
        row = _measure(pipeline, setting, generated, bases, ends, base_steps)
        if setting.policy == "none" and setting.scheduler == "Euler":
            euler[row.evaluations] = (row.psnr, row.ssim)
            rows.append(row)
        else:
            bar_psnr, bar_ssim = _interpolate(euler, row.evaluations, base_steps)
            rows.append(replace(row, euler_psnr=bar_psnr, euler_ssim=bar_ssim))
        keep(rows)
    return rows


def count_images(num_requests: int, settings: Sequence[Setting]) -> int:
    """Return how many images a run generates: those of 100 steps, and of each setting."""
    return num_requests * (len(settings) + 1)


def _measure(
    pipeline: Pipeline,
    setting: Setting,
    generated: Sequence[Generated],
    bases: Sequence[Pixels],
    ends: Sequence[Pixels],
    base_steps: int,
) -> Row:
    thresholds = effective_thresholds(setting.plan, pipeline.calibration)
    evaluations = statistics.mean(d.num_evaluations for d in generated)
    images = [d.pixels_yx3 for d in generated]
    return Row(
        policy=setting.policy,
        threshold=setting.threshold,
        effective_threshold=thresholds.tea if thresholds.tea is not None else thresholds.fb,
        scheduler=setting.scheduler,
        steps=setting.num_steps,
        evaluations=evaluations,
        saving=base_steps / evaluations,
        psnr=_median(psnr, images, bases),
        ssim=_median(ssim, images, bases),
        psnr_100=_median(psnr, images, ends),
        ssim_100=_median(ssim, images, ends),
        euler_psnr=None,
        euler_ssim=None,
        seconds=statistics.median(d.seconds for d in generated),
    )


def _median(
    measure: Callable[[Pixels, Pixels], float], ours: Sequence[Pixels], truths: Sequence[Pixels]
) -> float:
    values = (min(measure(a, b), MAX_PSNR) for a, b in zip(ours, truths, strict=True))
    return statistics.median(values)


def _interpolate(
    euler: dict[float, tuple[float, float]], evaluations: float, base_steps: int
) -> tuple[float | None, float | None]:
    """Return plain Euler's PSNR and SSIM at a number of evaluations, from its neighbours.

    At the base steps themselves Euler is the image that all are compared with; there is no bar.
    """
    below = [n for n in euler if n <= evaluations and n < base_steps]
    above = [n for n in euler if n >= evaluations and n < base_steps]
    if not below or not above:
        return None, None
    low, high = max(below), min(above)
    share = 0.0 if high == low else (evaluations - low) / (high - low)
    first, second = euler[low], euler[high]
    return (
        first[0] + share * (second[0] - first[0]),
        first[1] + share * (second[1] - first[1]),
    )


def write_rows(rows: Sequence[Row], csv_path: Path | None, json_path: Path | None) -> None:
    """Write the rows as CSV, JSON, or both."""
    if csv_path is not None:
        with csv_path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(asdict(rows[0])))
            writer.writeheader()
            writer.writerows(_rounded(row) for row in rows)
    if json_path is not None:
        content = json.dumps([_rounded(row) for row in rows], indent=2)
        json_path.write_text(content + "\n", encoding="utf-8")


def _rounded(row: Row) -> dict[str, object]:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(row).items()}


def plot_quality_chart(path: Path, rows: Sequence[Row], base_steps: int) -> None:
    """Draw PSNR against evaluations: caches and plain Euler, against the uncached image."""
    series: dict[str, Points] = {}
    for name in dict.fromkeys(row.policy for row in rows if row.scheduler == "Euler"):
        points = [
            (row.evaluations, row.psnr)
            for row in rows
            if row.policy == name and row.scheduler == "Euler" and row.psnr < MAX_PSNR
        ]
        if name == "none":
            points = [p for p in points if p[0] < base_steps]
        series["fewer Euler steps" if name == "none" else name] = points
    plot_chart(
        path,
        series,
        title=f"Work saved at {base_steps} steps, against the uncached image",
        x_label="model evaluations",
        y_label="median PSNR, dB",
    )


def plot_scheduler_chart(path: Path, rows: Sequence[Row]) -> None:
    """Draw PSNR against evaluations: solvers, against the 100-step image."""
    series: dict[str, Points] = {}
    for name in dict.fromkeys(row.scheduler for row in rows if row.policy == "none"):
        series[name] = [
            (row.evaluations, row.psnr_100)
            for row in rows
            if row.policy == "none" and row.scheduler == name and math.isfinite(row.psnr_100)
        ]
    plot_chart(
        path,
        series,
        title=f"Schedulers, against {TRUTH_STEPS} steps of Euler",
        x_label="model evaluations",
        y_label="median PSNR, dB",
    )
