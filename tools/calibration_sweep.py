"""Threshold sweep of the step caches: what each saves, how close it stays, and the defaults."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch

from cache.calibration import DEFAULT_DISTANCE, DEFAULT_THRESHOLD, Calibration
from cache.plan import NO_REUSE, CachePlan
from pipeline.load import Pipeline
from pipeline.request import ImageRequest
from tools.bench.images import Generated, generate_pixels
from tools.charts import plot_chart
from tools.progress import Report
from tools.similarity import psnr

SWEEP_STEPS, NUM_SWEPT = 30, 8
# What the API's default distance and threshold are made to save, in times fewer evaluations, and
# what the most aggressive values save at least: fbCacheThreshold 0 allows only 4/3 of the change
# that its default allows.
DEFAULT_SAVING, MOST_SAVING = 1.5, 2.1
_TEA_MULTIPLES = (1.2, 1.6, 2.0, 2.5, 3.0, 4.0, 6.0)
_FB_MULTIPLES = (0.8, 1.0, 1.25, 1.6, 2.0, 3.0, 4.5)

Policy = Literal["teaCache", "fbCache"]


@dataclass(frozen=True, slots=True)
class Swept:
    """A threshold, how many times fewer evaluations it needs, and the median PSNR in dB."""

    policy: Policy
    threshold: float
    saving: float
    psnr: float


def list_thresholds(
    changes: Sequence[float], first_changes: Sequence[float]
) -> list[tuple[Policy, float]]:
    """Return the thresholds to sweep: multiples of the median change of what each policy watches.

    `changes` are those of the layers' output, `first_changes` those of the first layer's.
    """
    tea_unit = float(torch.tensor(changes).median())
    fb_unit = float(torch.tensor(first_changes).median())
    thresholds: list[tuple[Policy, float]] = [("teaCache", tea_unit * m) for m in _TEA_MULTIPLES]
    return thresholds + [("fbCache", fb_unit * m) for m in _FB_MULTIPLES]


def sweep_thresholds(
    pipeline: Pipeline,
    calibration: Calibration,
    thresholds: Sequence[tuple[Policy, float]],
    requests: Sequence[ImageRequest],
    report: Report,
) -> list[Swept]:
    """Generate with both policies at rising thresholds; compare with the uncached images."""
    pipeline = replace(pipeline, calibration=replace(calibration, tea_scale=1.0, fb_threshold=1.0))
    num_images = len(requests) * (1 + len(thresholds))
    num_done = 0

    def generate_all(plan: CachePlan) -> list[Generated]:
        nonlocal num_done
        images = []
        for request in requests:
            images.append(generate_pixels(pipeline, replace(request, cache=plan)))
            num_done += 1
            report("sweeping", num_done, num_images)
        return images

    truths = generate_all(NO_REUSE)
    swept = []
    for policy, threshold in thresholds:
        images = generate_all(_plan(policy, threshold, requests[0].num_steps))
        values = [psnr(i.pixels_yx3, t.pixels_yx3) for i, t in zip(images, truths, strict=True)]
        evaluations = sum(image.num_evaluations for image in images) / len(images)
        middle = float(torch.tensor(values).clamp_max(99.0).median())
        swept.append(Swept(policy, threshold, requests[0].num_steps / evaluations, middle))
    return swept


def _plan(policy: Policy, threshold: float, num_steps: int) -> CachePlan:
    if policy == "teaCache":
        return CachePlan(start=0, end=num_steps, tea_distance=threshold)
    return CachePlan(start=0, end=num_steps, fb_threshold_scale=threshold)


def choose_defaults(calibration: Calibration, swept: Sequence[Swept]) -> Calibration:
    """Return the calibration whose defaults save what DEFAULT_SAVING and MOST_SAVING say."""
    tea_rows = [row for row in swept if row.policy == "teaCache"]
    fb_rows = [row for row in swept if row.policy == "fbCache"]
    tea = threshold_for(tea_rows, DEFAULT_SAVING)
    fb = max(
        threshold_for(fb_rows, DEFAULT_SAVING),
        threshold_for(fb_rows, MOST_SAVING) * (1 - DEFAULT_THRESHOLD),
    )
    curve: tuple[dict[str, float | str], ...] = tuple(
        {"policy": row.policy, "threshold": row.threshold, "saving": row.saving, "psnr": row.psnr}
        for row in swept
    )
    return replace(calibration, tea_scale=tea / DEFAULT_DISTANCE, fb_threshold=fb, sweep=curve)


def threshold_for(rows: Sequence[Swept], saving: float) -> float:
    """Return the threshold with a saving, straight between the swept ones, or the nearest end."""
    ordered = sorted(rows, key=lambda row: row.threshold)
    for low, high in pairwise(ordered):
        if low.saving <= saving <= high.saving and high.saving > low.saving:
            share = (saving - low.saving) / (high.saving - low.saving)
            return low.threshold + share * (high.threshold - low.threshold)
    return min(ordered, key=lambda row: abs(row.saving - saving)).threshold


def plot_curve(path: Path, swept: Sequence[Swept]) -> None:
    """Plot PSNR against saving, a line per policy.

    Raises:
        CommandError: matplotlib, an extra, is not installed.
    """
    series = {
        policy: [(row.saving, row.psnr) for row in swept if row.policy == policy]
        for policy in ("teaCache", "fbCache")
    }
    plot_chart(
        path,
        series,
        title=f"Step caches at {SWEEP_STEPS} steps, against the uncached image",
        x_label="times fewer evaluations",
        y_label="median PSNR, dB",
    )
