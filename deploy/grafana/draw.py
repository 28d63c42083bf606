"""A picture of the dashboard without Grafana: its own queries, answered by a Prometheus.

python deploy/grafana/draw.py http://localhost:9090 --minutes 5 --output dashboard.webp
"""

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

import httpx
import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

BOARD = Path(__file__).with_name("hyimage.json")
STEP_S = 5
RATE_INTERVAL = "30s"  # what Grafana chooses for scrapes some seconds apart
CELL_IN = (0.62, 0.34)  # of Grafana's grid, 24 cells wide
MIB = 2**20

Series = dict[str, dict[float, float]]  # by legend: value by seconds since the start


def query(url: str, target: dict[str, str], start: float, end: float) -> Series:
    """Return what Prometheus answers to one query of a panel."""
    expression = target["expr"].replace("$__rate_interval", RATE_INTERVAL)
    expression = expression.replace('"$instance"', '".*"')
    parameters: dict[str, str | float] = {
        "query": expression,
        "start": start,
        "end": end,
        "step": STEP_S,
    }
    answer = httpx.get(f"{url}/api/v1/query_range", params=parameters).raise_for_status()
    found: Series = {}
    for series in answer.json()["data"]["result"]:
        legend = target["legendFormat"]
        for label in re.findall(r"\{\{(\w+)\}\}", legend):
            legend = legend.replace("{{" + label + "}}", series["metric"].get(label, ""))
        found[legend] = {t - start: float(v) for t, v in series["values"] if v != "NaN"}
    return {legend: values for legend, values in found.items() if values}


def draw_value(axes: Axes, panel: dict[str, Any], found: Series) -> None:
    """Write the last value of a panel."""
    value = next((list(values.values())[-1] for values in found.values()), float("nan"))
    is_share = panel["fieldConfig"]["defaults"]["unit"] == "percentunit"
    text = f"{value:.0%}" if is_share else f"{value:.3g}"
    axes.text(0.5, 0.5, text, fontsize=18, ha="center", va="center", transform=axes.transAxes)
    axes.set(xticks=[], yticks=[])


def draw_lines(axes: Axes, panel: dict[str, Any], found: Series, seconds: float) -> None:
    """Draw a panel's series as lines, or as areas on top of each other."""
    defaults = panel["fieldConfig"]["defaults"]
    scale = 1 / MIB if defaults["unit"] == "bytes" else 1.0
    if "stacking" in defaults["custom"]:
        times = sorted({t for values in found.values() for t in values})
        areas = [[values.get(t, 0.0) for t in times] for values in found.values()]
        axes.stackplot(times, areas, labels=list(found), alpha=0.7)
    else:
        for legend, values in found.items():
            axes.plot(list(values), [scale * v for v in values.values()], lw=1, label=legend)
    unit = {"bytes": "MiB", "s": "s", "reqps": "/s", "ops": "/s"}.get(defaults["unit"], "")
    axes.set_ylabel(unit, fontsize=6)
    axes.set_xlim(0, seconds)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=6)
    axes.grid(alpha=0.3)
    if found:
        axes.legend(fontsize=5, loc="upper left", ncols=2, framealpha=0.6)


def draw_board(url: str, minutes: float, output: Path) -> None:
    """Draw all panels where the dashboard has them, over the last minutes; seconds below."""
    end = time.time()
    start = end - 60 * minutes
    panels = json.loads(BOARD.read_text(encoding="utf-8"))["panels"]
    num_lines = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in panels)
    width, height = 24 * CELL_IN[0], num_lines * CELL_IN[1]
    figure = plt.figure(figsize=(width, height))
    for panel in panels:
        grid = panel["gridPos"]
        top = 1 - grid["y"] / num_lines
        if panel["type"] == "row":
            figure.text(0.01, top - 0.7 / num_lines, panel["title"], fontsize=10, weight="bold")
            continue
        left, bottom = grid["x"] / 24, top - grid["h"] / num_lines
        axes = figure.add_axes(
            (left + 0.032, bottom + 0.9 / num_lines, grid["w"] / 24 - 0.04,
             (grid["h"] - 2.0) / num_lines)
        )  # fmt: skip
        axes.set_title(panel["title"], fontsize=8, loc="left")
        found: Series = {}
        for target in panel["targets"]:
            found |= query(url, target, start, end)
        if panel["type"] == "stat":
            draw_value(axes, panel, found)
        else:
            draw_lines(axes, panel, found, end - start)
    figure.savefig(output, dpi=110, pil_kwargs={"quality": 85})


if __name__ == "__main__":
    mpl.use("Agg")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prometheus", help="its URL")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--output", type=Path, default=Path("dashboard.webp"))
    options = parser.parse_args()
    draw_board(options.prometheus, options.minutes, options.output)
