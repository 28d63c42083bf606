"""Plots as SVG text, without a library: bars with marks, and lines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 900
_LABEL, _ROOM, _ROW = 300, 210, 26  # pixels: left of the bars, right of them, for each
_LABEL_LETTERS = 40
_COLORS = ("#2456a6", "#c4571a", "#17795e", "#8a3fa0", "#8c6d00", "#5a6472")


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar, a note behind it, and where a mark crosses it."""

    label: str
    value: float
    note: str = ""
    mark: float | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """One point with its label, and the name of its group, which gives it a colour."""

    x: float
    y: float
    label: str
    group: str


def plot_bars(bars: Sequence[Bar], unit: str) -> str:
    """Return horizontal bars from zero on one scale."""
    largest = max((max(bar.value, bar.mark or 0.0) for bar in bars), default=0.0) or 1.0
    scale = (WIDTH - _LABEL - _ROOM) / largest
    parts = []
    for index, bar in enumerate(bars):
        y, width = index * _ROW, bar.value * scale
        note = f"{bar.value:.3g} {unit}" + (f", {bar.note}" if bar.note else "")
        end = max(width, (bar.mark or 0.0) * scale)
        parts.append(
            f"<g><title>{escape(bar.label)}</title>"
            f'<text x="{_LABEL - 8}" y="{y + 17}" text-anchor="end">{_shortened(bar.label)}</text>'
            f'<rect x="{_LABEL}" y="{y + 4}" width="{width:.1f}" height="17" fill="{_COLORS[0]}"/>'
            f'<text x="{_LABEL + end + 8:.1f}" y="{y + 17}" fill="#667085">{escape(note)}</text>'
            "</g>"
        )
        if bar.mark is not None:
            x = _LABEL + bar.mark * scale
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y + 1}" y2="{y + 24}" stroke="#c4571a" '
                'stroke-width="3"/>'
            )
    return _svg(len(bars) * _ROW + 4, parts)


def plot_lines(
    series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str
) -> str:
    """Return a line per series, both axes from zero."""
    points = [point for line in series.values() for point in line]
    x_most = max((x for x, _ in points), default=1.0) or 1.0
    y_most = max((y for _, y in points), default=1.0) or 1.0
    left, top, width, height = 70, 12, 520, 240

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x / x_most * width, top + height - y / y_most * height

    parts = [_axes(left, top, width, height)]
    for x in sorted({x for x, _ in points}):
        at, _ = place(x, 0)
        parts.append(_text(at, top + height + 18, f"{x:g}", "middle"))
    for share in (0.0, 0.5, 1.0):
        _, at = place(0, share * y_most)
        parts.append(_text(left - 8, at + 4, f"{share * y_most:.3g}", "end"))
    parts.append(_text(left + width / 2, top + height + 38, x_label, "middle"))
    parts.append(_text(left + 8, top + 10, y_label, "start"))
    for index, (name, line) in enumerate(series.items()):
        color = _COLORS[index % len(_COLORS)]
        places = [place(x, y) for x, y in sorted(line)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>' for x, y in places]
        y = top + 14 + 22 * index
        x = left + width + 24
        parts.append(f'<rect x="{x}" y="{y - 9}" width="12" height="12" fill="{color}"/>')
        parts.append(_text(x + 20, y + 2, name, "start"))
    return _svg(top + height + 48, parts)


def plot_points(points: Sequence[Point], x_label: str, y_label: str) -> str:
    """Return labelled points by group, each axis from the smallest value to the largest."""
    left, top, width, height = 70, 12, 560, 340
    x_low, x_span = _range([point.x for point in points])
    y_low, y_span = _range([point.y for point in points])
    parts = [_axes(left, top, width, height)]
    for share in (0.0, 0.5, 1.0):
        x, y = left + share * width, top + height - share * height
        parts.append(_text(x, top + height + 18, f"{x_low + share * x_span:.3g}", "middle"))
        parts.append(_text(left - 8, y + 4, f"{y_low + share * y_span:.3g}", "end"))
    parts.append(_text(left + width / 2, top + height + 38, x_label, "middle"))
    parts.append(_text(left + 8, top + 10, y_label, "start"))
    groups = list(dict.fromkeys(point.group for point in points))
    for point in points:
        color = _COLORS[groups.index(point.group) % len(_COLORS)]
        x = left + (point.x - x_low) / x_span * width
        y = top + height - (point.y - y_low) / y_span * height
        parts.append(
            f'<g><title>{escape(point.label)}</title><circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" '
            f'fill="{color}" fill-opacity="0.8"/></g>'
        )
    for index, name in enumerate(groups):
        y, color = top + 14 + 22 * index, _COLORS[index % len(_COLORS)]
        parts.append(
            f'<rect x="{left + width + 24}" y="{y - 9}" width="12" height="12" fill="{color}"/>'
        )
        parts.append(_text(left + width + 44, y + 2, name, "start"))
    return _svg(top + height + 48, parts)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return the smallest value and how far the largest is from it, never 0."""
    low = min(values, default=0.0)
    return low, (max(values, default=0.0) - low) or 1.0


def _axes(left: int, top: int, width: int, height: int) -> str:
    corners = f"{left},{top} {left},{top + height} {left + width},{top + height}"
    return f'<polyline points="{corners}" fill="none" stroke="#98a2b3"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _shortened(label: str) -> str:
    return escape(label if len(label) <= _LABEL_LETTERS else f"{label[: _LABEL_LETTERS - 1]}…")


def _svg(height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" font-family="system-ui, sans-serif" font-size="13" fill="#1d2430">'
        f"{''.join(parts)}</svg>"
    )
