"""Charts of `hyimage bench quality`: PSNR against model evaluations."""

import math
from collections.abc import Sequence
from pathlib import Path

from tools.bench.quality import Row
from tools.charts import Points, plot_chart
from tools.similarity import MAX_PSNR


def plot_quality_chart(path: Path, rows: Sequence[Row], base_steps: int) -> None:
    """Plot PSNR against evaluations: caches and plain Euler, against the uncached image."""
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


def plot_scheduler_chart(path: Path, rows: Sequence[Row], truth_steps: int) -> None:
    """Plot PSNR against evaluations: solvers, against the image of many steps."""
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
        title=f"Schedulers, against {truth_steps} steps of Euler",
        x_label="model evaluations",
        y_label="median PSNR, dB",
    )
