"""Plot of the losses of a run, and the file they are read from."""

import json
from pathlib import Path

METRICS_NAME, PLOT_NAME = "metrics.jsonl", "losses.png"
_CURVES = ("flow", "small", "layout", "text")


def read_metrics(run: Path) -> list[dict[str, float | None]]:
    """Return the reports of a run, of which a resumed one may repeat steps."""
    path = run / METRICS_NAME
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def plot_losses(run: Path) -> Path | None:
    """Draw the losses over hours into the run folder; None without matplotlib (extra plot)."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    rows = read_metrics(run)
    for name in _CURVES:
        points = [
            (hours, value)
            for row in rows
            if (value := row.get(name)) is not None and (hours := row.get("hours")) is not None
        ]
        if points:
            axes.plot(*zip(*points, strict=True), label=name)
    axes.set(xlabel="hours", ylabel="loss", yscale="log", title="Losses of the tiny checkpoint")
    axes.grid(alpha=0.3, which="both")
    if rows:
        axes.legend()
    path = run / PLOT_NAME
    figure.savefig(path, dpi=110)
    return path
