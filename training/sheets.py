"""Pictures for a person to look at: sample sheets with captions, and the curve of the loss."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

CELL_PX = 256
CAPTION_PX = 42
CURVE_PX = (900, 420)


def save_sheet(
    path: Path,
    pictures: Sequence[npt.NDArray[np.uint8]],
    captions: Sequence[str],
    columns: int = 6,
) -> None:
    """Write pictures (each [y, x, 3]) row by row, each with its caption below."""
    rows = -(-len(pictures) // columns)
    height = CELL_PX + CAPTION_PX
    sheet = Image.new("RGB", (columns * CELL_PX, rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (pixels_yx3, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = index % columns * CELL_PX, index // columns * height
        picture = Image.fromarray(pixels_yx3)
        picture.thumbnail((CELL_PX - 6, CELL_PX - 6))
        sheet.paste(picture, (left, top))
        text = "\n".join(textwrap.wrap(caption, 44)[:3])
        pen.text((left + 2, top + CELL_PX - 2), text, fill="black")
    _save(sheet, path)


def save_curve(path: Path, points: Sequence[tuple[float, float]], title: str) -> None:
    """Draw (x, y) points as a line, y logarithmic, with a few labels."""
    width, height = CURVE_PX
    picture = Image.new("RGB", CURVE_PX, "white")
    pen = ImageDraw.Draw(picture)
    xs = np.array([x for x, _ in points])
    ys = np.log(np.array([y for _, y in points]))
    if len(xs) < 2 or np.ptp(xs) == 0 or np.ptp(ys) == 0:
        return
    left, top, right, bottom = 60, 30, width - 20, height - 30
    across = left + (xs - xs.min()) / np.ptp(xs) * (right - left)
    down = bottom - (ys - ys.min()) / np.ptp(ys) * (bottom - top)
    pen.rectangle((left, top, right, bottom), outline="gray")
    pen.line(list(zip(across.tolist(), down.tolist(), strict=True)), fill="navy", width=2)
    pen.text((left, 8), title, fill="black")
    for share in (0.0, 0.5, 1.0):
        value = float(np.exp(ys.min() + share * np.ptp(ys)))
        pen.text((8, bottom - share * (bottom - top) - 6), f"{value:.3f}", fill="black")
        label = f"{xs.min() + share * np.ptp(xs):.0f}"
        pen.text((left + share * (right - left) - 10, bottom + 8), label, fill="black")
    _save(picture, path)


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    picture.save(partial, "PNG")
    partial.replace(path)
