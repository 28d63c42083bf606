"""Sample sheets: generated images side by side, each with its caption."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

CELL_PX = 256
CAPTION_PX = 42


def save_sheet(
    path: Path,
    images: Sequence[npt.NDArray[np.uint8]],
    captions: Sequence[str],
    columns: int = 6,
) -> None:
    """Write images (each [y, x, 3]) row by row, each with its caption below."""
    rows = -(-len(images) // columns)
    height = CELL_PX + CAPTION_PX
    sheet = Image.new("RGB", (columns * CELL_PX, rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (pixels_yx3, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = index % columns * CELL_PX, index // columns * height
        image = Image.fromarray(pixels_yx3)
        image.thumbnail((CELL_PX - 6, CELL_PX - 6))
        sheet.paste(image, (left, top))
        text = "\n".join(textwrap.wrap(caption, 44)[:3])
        pen.text((left + 2, top + CELL_PX - 2), text, fill="black")
    _save(sheet, path)


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    image.save(partial, "PNG")
    partial.replace(path)
