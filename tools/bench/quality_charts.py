"""Chart of `hyimage bench quality`: PSNR to the converged image against model evaluations."""

from collections.abc import Sequence
from pathlib import Path

from tools.bench.quality import Row
from tools.charts import Points, plot_chart
from tools.similarity import MAX_PSNR


def plot_quality_chart(path: Path, rows: Sequence[Row], base_steps: int) -> None:
    """Plot medians against the converged image: each solver and each policy is a line.

    Presets of equal steps are a line of their own, from low to high.
    """
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row.psnr < MAX_PSNR:
            series.setdefault(_name(row), []).append((row.evaluations, row.psnr))
    lines: dict[str, Points] = dict(series.items())
    plot_chart(
        path,
        lines,
        title=f"Quality per evaluation, against a converged image; caches at {base_steps} steps",
        x_label="model evaluations",
        y_label="median PSNR, dB",
    )


def _name(row: Row) -> str:
    if row.policy == "none":
        return row.scheduler
    return f"presets, {row.steps} steps" if row.policy.startswith("preset") else row.policy
