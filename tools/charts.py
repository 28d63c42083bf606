"""Line charts as PNG."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from server.runware.errors import CommandError

Points = Sequence[tuple[float, float]]


def check_charts() -> None:
    """Check that charts can be plotted here, before something long is measured for one.

    Raises:
        CommandError: matplotlib, an extra, is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise CommandError("charts need matplotlib: pip install 'hunyuan-image-server[plot]'")


def plot_chart(
    path: Path,
    series: Mapping[str, Points],
    *,
    title: str,
    x_label: str,
    y_label: str,
    marks: Sequence[str] = (),
) -> None:
    """Plot one line per series through its points, sorted by x; those in `marks` as dots alone.

    Raises:
        CommandError: matplotlib, an extra, is not installed.
    """
    check_charts()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for name, points in series.items():
        xs, ys = zip(*sorted(points), strict=True) if points else ((), ())
        axes.plot(xs, ys, "o" if name in marks else "o-", label=name, markersize=4)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    if len(series) > 1:
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
