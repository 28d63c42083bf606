"""The page of results: one file of HTML with inline SVG, to be sent back as it is."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from tools.first_contact.svg import Bar, plot_bars, plot_lines

REAL_LAYERS = 32

_STYLE = """
:root { --ink: #1d2430; --soft: #667085; --line: #d9dee7; --good: #17795e; --bad: #b3261e; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff; margin: 0 auto;
  padding: 32px 24px 80px; max-width: 1040px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 40px 0 8px; }
h3 { font-size: 15px; margin: 24px 0 4px; } p { margin: 4px 0 12px; color: var(--soft); }
.banner { border: 1px solid #d9a400; background: #fff7dd; color: var(--ink); padding: 10px 14px;
  border-radius: 6px; margin: 16px 0; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: 8px 0 16px; }
th, td { text-align: left; padding: 4px 16px 4px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 500; white-space: nowrap; }
td.number { text-align: right; } td { white-space: pre-wrap; max-width: 560px; }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
pre { background: #f5f6f8; padding: 10px; border-radius: 6px; overflow-x: auto; font-size: 12px; }
svg { display: block; max-width: 100%; height: auto; margin: 8px 0; }
"""

Values = Mapping[str, Any]


def build_page(values: Values) -> str:
    """Return the page of what results.json holds."""
    parts = values["parts"]
    body = [
        "<h1>hyimage first contact</h1>",
        f"<p>device {escape(values['device'])}{', quick' if values['is_quick'] else ''}</p>",
    ]
    if values["is_rehearsal"]:
        body.append(
            '<div class="banner"><b>Rehearsal without a GPU.</b> Sizes are small and the times '
            "are those of a CPU: the page shows that every part runs, and nothing about speed."
            "</div>"
        )
    body.append(_summary(parts))
    body.append(_steps(parts))
    body += [_part(part) for part in parts]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>hyimage first contact</title><style>{_STYLE}</style></head>\n"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _summary(parts: Sequence[Values]) -> str:
    rows = []
    for part in parts:
        failed = sum(not row.get("is_ok", True) for row in part["rows"])
        note = f"{failed} of {len(part['rows'])} rows failed" if failed else ""
        rows.append(
            f'<tr><td><a href="#{part["name"]}">{escape(part["title"])}</a></td>'
            f"<td>{_verdict(part)}</td><td class=number>{part['seconds']:.1f} s</td>"
            f"<td>{note}</td></tr>"
        )
    head = "<tr><th>part</th><th>status</th><th>time</th><th></th></tr>"
    return f"<h2>Summary</h2><table>{head}{''.join(rows)}</table>"


def _verdict(part: Values) -> str:
    if part["status"] == "done":
        return _good("ok") if part["is_ok"] else _bad("rows failed")
    return escape(part["status"]) if part["is_ok"] else _bad(part["status"])


def _steps(parts: Iterable[Values]) -> str:
    """Return the formats beside one another: time by depth, and measured beside counted."""
    lines, bars, rows = {}, [], []
    for part in parts:
        timed = [row for row in part["rows"] if "step_s" in row]
        if not part["name"].startswith("step_") or not timed:
            continue
        name = part["name"].removeprefix("step_").replace("_", " ")
        lines[name] = [(row["layers"], row["step_s"] * 1e3) for row in timed]
        deepest = timed[-1]
        counted_ms = None if deepest["counted_s"] is None else deepest["counted_s"] * 1e3
        counted = "not counted" if counted_ms is None else f"counted {counted_ms:.1f} ms"
        bars.append(Bar(name, deepest["step_s"] * 1e3, counted, counted_ms))
        rows.append(_step_row(name, timed))
    if not rows:
        return ""
    head = "".join(f"<th>{title}</th>" for title in (
        "format", "layers", "measured", "bare products", "counted", "a layer more",
        f"{REAL_LAYERS} layers, extrapolated"))  # fmt: skip
    return (
        "<h2>A denoising step by format</h2><p>Measured; the mark shows the counted time of the "
        "card's stated rates. Bare products: the same products and attention calls alone.</p>"
        + plot_bars(bars, "ms")
        + plot_lines(lines, "layers", "ms a step")
        + f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
    )


def _step_row(name: str, timed: Sequence[Values]) -> str:
    first, last = timed[0], timed[-1]
    cells = [name, str(last["layers"])]
    seconds = [last[key] for key in ("step_s", "bare_s", "counted_s")]
    cells += ["" if value is None else f"{value * 1e3:.2f} ms" for value in seconds]
    # Where noise outweighs a layer, an extrapolation would mean nothing.
    if last["layers"] > first["layers"] and last["step_s"] > first["step_s"]:
        layer_s = (last["step_s"] - first["step_s"]) / (last["layers"] - first["layers"])
        whole_s = last["step_s"] + layer_s * (REAL_LAYERS - last["layers"])
        cells += [f"{layer_s * 1e3:.2f} ms", f"{whole_s * 1e3:.0f} ms"]
    else:
        cells += ["-", "-"]
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _part(part: Values) -> str:
    rows = part["rows"]
    profiled = [row for row in rows if "kernel" in row]
    others = [row for row in rows if "kernel" not in row]
    body = [f'<h2 id="{part["name"]}">{escape(part["title"])}</h2>']
    if part["status"] != "done":
        body.append(f"<p>{_verdict(part)}</p>")
    if part["error"]:
        body.append(f"<pre>{escape(part['error'])}</pre>")
    body.append(_table(others))
    decoded = [row for row in others if "layout" in row and "seconds" in row]
    if decoded:
        bars = [Bar(f"{r['dtype']}, {r['layout']}", r["seconds"] * 1e3) for r in decoded]
        body.append(plot_bars(bars, "ms"))
    if profiled:
        body.append("<h3>Time of the deepest step by kernel</h3>")
        share = "{:.1%} of the step".format
        bars = [Bar(r["kernel"], r["ms_a_step"], share(r["share"])) for r in profiled[:10]]
        body += [plot_bars(bars, "ms"), _table(profiled)]
    return "".join(body)


def _table(rows: Sequence[Values]) -> str:
    """Return rows as a table with every column that occurs."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return ""
    head = "".join(f"<th>{escape(column.replace('_', ' '))}</th>" for column in columns)
    lines = ("".join(_cell(row.get(column)) for column in columns) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return f"<td>{_good('yes') if value else _bad('no')}</td>"
    if isinstance(value, int | float):
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        return f"<td class=number>{text}</td>"
    return f"<td>{'' if value is None else escape(str(value))}</td>"


def _good(text: str) -> str:
    return f'<span class="good">{escape(text)}</span>'


def _bad(text: str) -> str:
    return f'<span class="bad">{escape(text)}</span>'
