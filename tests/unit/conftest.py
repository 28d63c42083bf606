"""Artwork is not in the repository, so painted discs stand in for it."""

from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from training.art import FILES


@pytest.fixture(scope="session")
def art(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of wedges, each kind with its own angles, in red for the repainting to work on."""
    folder = tmp_path_factory.mktemp("art")
    for index, name in enumerate(FILES.values()):
        image = Image.new("RGBA", (64, 64))
        pen = ImageDraw.Draw(image)
        pen.ellipse((2, 2, 61, 61), fill=(220, 40, 40, 255))
        pen.pieslice((2, 2, 61, 61), 20 * index, 20 * index + 110, fill=(30, 30, 30, 255))
        image.save(folder / f"{name}.webp", lossless=True)
    return folder
