"""The page of a ledger: one file of HTML with a table and inline SVG."""

from collections.abc import Sequence
from html import escape

from tools.first_contact.svg import Bar, Point, plot_bars, plot_points
from tools.ledger.book import Figures, Ledger, measured
from tools.ledger.cells import AGAIN, CONVERGED, REFERENCE
from tools.ledger.compare import measure_noise

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2430; background: #fff; margin: 0 auto;
  padding: 32px 24px 80px; max-width: 1080px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 19px; margin: 36px 0 8px; }
p { color: #667085; margin: 4px 0 12px; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; } th, td { padding: 3px 14px 3px 0; text-align: right;
  border-bottom: 1px solid #d9dee7; font-variant-numeric: tabular-nums; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: #667085; font-weight: 500; }
.note { color: #667085; font-size: 12px; white-space: normal; max-width: 260px; }
td.fault { text-align: left; color: #b3261e; white-space: normal; }
svg { display: block; max-width: 100%; height: auto; }
"""
# Six groups, as there are colours; those that compute the same in another way are one.
_GROUPS = dict.fromkeys((REFERENCE, AGAIN, "mode", "dtype"), "base, mode, dtype")
_COLUMNS = (
    "cell", "PSNR, dB", "worst", "SSIM", "to converged, dB", "SSIM", "all right", "evaluations",
    "rows", "s", "peak, GB",
)  # fmt: skip


def build_page(ledger: Ledger) -> str:
    """Return the page of a ledger."""
    setup, noise = ledger.setup, measure_noise(ledger)
    body = [
        "<h1>Fidelity ledger</h1>",
        f"<p>weights {escape(setup.weights)}; prompts: {len(setup.prompts)}; {setup.steps} steps, "
        f"guidance {setup.guidance:g}; {escape(setup.machine)}. PSNR and SSIM are medians to the "
        "float32 images without a cache, and to a converged run. "
        f"Noise of {escape(noise.text)}.</p>",
        _table(ledger.figures),
        *_plots(measured(ledger.figures)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Fidelity ledger</title><style>{_STYLE}</style></head>\n"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _table(figures: Sequence[Figures]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in _COLUMNS)
    rows = []
    for each in figures:
        if each.fault:
            cells = f'<td class="fault" colspan="{len(_COLUMNS) - 1}">{escape(each.fault)}</td>'
        else:
            cells = "".join(f"<td>{text}</td>" for text in list_texts(each))
        note = f'<div class="note">{escape(each.note)}</div>' if each.note else ""
        rows.append(f"<tr><td>{escape(each.cell)}{note}</td>{cells}</tr>")
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def list_texts(figures: Figures) -> list[str]:
    """Return the figures of a cell as a table shows them."""
    forms: tuple[tuple[float | None, str], ...] = (
        (figures.psnr, ".1f"),
        (figures.least_psnr, ".1f"),
        (figures.ssim, ".4f"),
        (figures.psnr_converged, ".1f"),
        (figures.ssim_converged, ".4f"),
        (figures.adherence, ".0%"),
        (figures.evaluations, ".1f"),
        (figures.rows, ".1f"),
        (figures.seconds, ".2f"),
        (None if figures.peak_bytes is None else figures.peak_bytes / 1e9, ".2f"),
    )
    return ["" if value is None else format(value, form) for value, form in forms]


def _plots(figures: Sequence[Figures]) -> list[str]:
    shown = [each for each in figures if each.axis not in (REFERENCE, CONVERGED)]
    points = [
        Point(each.rows, each.psnr_converged, each.cell, _GROUPS.get(each.axis, each.axis))
        for each in figures
        if each.axis != CONVERGED and each.rows and each.psnr_converged is not None
    ]
    near = [Bar(each.cell, each.psnr) for each in shown if each.psnr is not None]
    seconds = [Bar(each.cell, each.seconds) for each in figures if each.seconds is not None]
    memory = [Bar(each.cell, each.peak_bytes / 1e9) for each in figures if each.peak_bytes]
    return [
        "<h2>Rows against nearness to the converged run</h2>",
        plot_points(points, "rows of an image through the layers", "PSNR, dB"),
        "<h2>Nearness to the float32 images without a cache</h2>",
        plot_bars(near, "dB"),
        "<h2>Seconds of an image</h2>",
        plot_bars(seconds, "s"),
        "<h2>Peak memory</h2>",
        plot_bars(memory, "GB"),
    ]
