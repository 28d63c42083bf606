"""Image quality of schedulers, steps and step caches against uncached images: PSNR, SSIM.

Every image is compared with two: the uncached Euler image of the base number of steps, which
a cache tries to save work on, and the uncached image of 100 steps, which all solvers head for.
Plain Euler with as many model evaluations is the bar: below it, fewer steps would be better.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from cache.build import effective_thresholds
from pipeline.load import Pipeline
from pipeline.request import ImageRequest
from tools.bench.images import Generated, generate_pixels
from tools.bench.quality_settings import Setting, Sweep, list_settings, plain
from tools.progress import Report, ignore
from tools.similarity import MAX_PSNR, Pixels, psnr, ssim


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


@dataclass(frozen=True, slots=True)
class _Truths:
    """The uncached images that all others are compared with: of the base steps, and of many."""

    base: Sequence[Pixels]
    end: Sequence[Pixels]
    base_steps: int


def run_quality_bench(
    pipeline: Pipeline,
    requests: Sequence[ImageRequest],
    base_steps: int,
    sweep: Sweep,
    report: Report = ignore,
) -> Iterator[Row]:
    """Generate every request with every setting of the sweep; yield a row after each setting.

    A run takes long: what stops it costs only the setting it was at.
    """
    settings = list(list_settings(base_steps, sweep))
    generate_all = _counting_generator(pipeline, requests, len(settings) + 1, report)
    ends = [image.pixels_yx3 for image in generate_all(plain("Euler", sweep.truth_steps))]
    base_setting = plain("Euler", base_steps)
    base = generate_all(base_setting)
    truths = _Truths([image.pixels_yx3 for image in base], ends, base_steps)
    euler: dict[float, tuple[float, float]] = {}
    for setting in settings:
        generated = base if setting == base_setting else generate_all(setting)
        row = _measure(pipeline, setting, generated, truths)
        if setting.policy == "none" and setting.scheduler == "Euler":
            euler[row.evaluations] = (row.psnr, row.ssim)
            yield row
        else:
            bar_psnr, bar_ssim = _interpolate(euler, row.evaluations, base_steps)
            yield replace(row, euler_psnr=bar_psnr, euler_ssim=bar_ssim)


def _counting_generator(
    pipeline: Pipeline, requests: Sequence[ImageRequest], num_settings: int, report: Report
) -> Callable[[Setting], list[Generated]]:
    """Return a function that generates all requests with a setting, and reports each image."""
    num_done, num_images = 0, len(requests) * num_settings

    def generate_all(setting: Setting) -> list[Generated]:
        nonlocal num_done
        images = []
        for request in requests:
            variant = replace(
                request,
                scheduler=setting.scheduler,
                num_steps=setting.num_steps,
                cache=setting.plan,
            )
            images.append(generate_pixels(pipeline, variant))
            num_done += 1
            report("generating", num_done, num_images)
        return images

    return generate_all


def _measure(
    pipeline: Pipeline,
    setting: Setting,
    generated: Sequence[Generated],
    truths: _Truths,
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
        saving=truths.base_steps / evaluations,
        psnr=_median(psnr, images, truths.base),
        ssim=_median(ssim, images, truths.base),
        psnr_100=_median(psnr, images, truths.end),
        ssim_100=_median(ssim, images, truths.end),
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
