"""Chart of `hyimage bench load`: latency and throughput against load."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.bench.load_plan import LoadKind
from tools.bench.load_report import LevelResult, LoadReport
from tools.charts import check_charts

_TITLES: dict[LoadKind, tuple[str, str]] = {
    "closed": ("closed loop", "tasks at once"),
    "open": ("open loop (Poisson)", "requests a second, as sent"),
}
_LINES = (("p99", "#c0392b"), ("p90", "#e08e0b"), ("p50", "#1f6fb2"))


def plot_load_chart(path: Path, report: LoadReport) -> None:
    """Plot latency (above) and images a second (below), one column for each kind of loop.

    Raises:
        CommandError: matplotlib, an extra, is not installed.
    """
    check_charts()
    from matplotlib.figure import Figure

    kinds = [kind for kind in _TITLES if any(level.kind == kind for level in report.levels)]
    figure = Figure(figsize=(1 + 5 * len(kinds), 6.5), layout="constrained")
    axes = figure.subplots(
        2, len(kinds), squeeze=False, sharex="col", sharey="row", height_ratios=(2, 1)
    )
    for column, kind in enumerate(kinds):
        levels = sorted((r for r in report.levels if r.kind == kind), key=lambda r: r.load)
        title, label = _TITLES[kind]
        _plot_latency(axes[0][column], levels)
        _plot_throughput(axes[1][column], levels, kind)
        axes[0][column].set_title(title)
        axes[1][column].set_xlabel(label)
    axes[0][0].set_ylabel("seconds")
    axes[1][0].set_ylabel("images a second")
    for row in axes:
        for each in row:
            each.grid(alpha=0.3)
            each.set_ylim(bottom=0)
            each.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def _plot_latency(axes: Any, levels: Sequence[LevelResult]) -> None:
    for name, colour in _LINES:
        points = [(r.load, getattr(r.latency, name)) for r in levels if r.latency is not None]
        _plot(axes, points, "o-", f"latency {name}", colour)
    waits = [(r.load, r.queue_wait.p50) for r in levels if r.queue_wait is not None]
    _plot(axes, waits, "s--", "queue wait p50", "#7f8c8d")


def _plot_throughput(axes: Any, levels: Sequence[LevelResult], kind: LoadKind) -> None:
    _plot(axes, [(r.load, r.images_per_s) for r in levels], "o-", "finished", "#1f6fb2")
    if kind == "open":
        offered = [(r.load, r.load) for r in levels]
        _plot(axes, offered, ":", "sent", "#7f8c8d")
    failed = [
        (r.load, (r.num_requests - r.num_ok) / r.duration_s) for r in levels if r.duration_s > 0
    ]
    if any(rate for _, rate in failed):
        _plot(axes, failed, "x-", "failed", "#c0392b")


def _plot(
    axes: Any, points: Sequence[tuple[float, float]], style: str, label: str, colour: str
) -> None:
    if points:
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, style, label=label, color=colour, markersize=4)
