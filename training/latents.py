"""Latents of the training images, computed once and kept in the run folder."""

import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.vae import Vae
from training.scenes import (
    OFFERED,
    SQUARE,
    TOKEN_PX,
    Scene,
    grid_of,
    make_scene,
    paint_scene,
    seed_of,
)
from training.state import Report, append_line

Grid = tuple[int, int]  # columns, rows of tokens

# A quarter of a square image, with objects of the same size: four times as quick to learn from.
SMALL_GRID: Grid = (8, 8)
OFFERED_GRIDS: tuple[Grid, ...] = tuple(grid_of(size) for size in OFFERED)
SQUARE_GRID: Grid = grid_of(SQUARE)
# Scenes per grid.
COUNTS: dict[Grid, int] = {
    **dict.fromkeys(OFFERED_GRIDS, 300),
    SQUARE_GRID: 2500,
    SMALL_GRID: 5000,
}


def train_scene(grid: Grid, index: int) -> Scene:
    """Return the index-th training scene of a grid; always the same one."""
    return make_scene(random.Random(seed_of("train", *grid, index)), *grid)


def encoder_matrix(vae: Vae, side_px: int) -> tuple[Tensor, Tensor]:
    """Return the encoder as one affine map of a block of pixels, as its closed form leaves it.

    Shapes: -> matrix_ZC with Z = 3 * side_px**2 in the order (channel, y, x), offset_C.
    """
    rgb_B3yx = torch.zeros(1, 3, side_px, side_px, requires_grad=True)
    with torch.enable_grad():
        mean_C = vae.encode(rgb_B3yx)[0].flatten()
        rows = [
            torch.autograd.grad(value, rgb_B3yx, retain_graph=True)[0].flatten() for value in mean_C
        ]
    return torch.stack(rows, dim=1), mean_C.detach()


def encode_images(rgb_Byx3: Tensor, matrix_ZC: Tensor, offset_C: Tensor) -> Tensor:
    """Return the latents of images in [-1, 1]. Shapes: -> latent_BCYX float32."""
    side_px = round((matrix_ZC.shape[0] / 3) ** 0.5)
    blocks = rgb_Byx3.unflatten(1, (-1, side_px)).unflatten(3, (-1, side_px))
    blocks_BYXZ = blocks.permute(0, 1, 3, 5, 2, 4).flatten(3)
    latent_BYXC: Tensor = blocks_BYXZ @ matrix_ZC + offset_C
    return latent_BYXC.movedim(-1, 1)


def to_rgb(pixels_yx3: npt.NDArray[np.uint8]) -> Tensor:
    """Map 0..255 to [-1, 1], a batch of one. Shapes: -> rgb_1yx3 float32."""
    return torch.from_numpy(pixels_yx3)[None].float() / 127.5 - 1


def latents_path(folder: Path, grid: Grid) -> Path:
    """Return where the latents of a grid lie."""
    return folder / "latents" / f"{grid[0]}x{grid[1]}.npy"


def build_latents(
    folder: Path, art: Path, vae: Vae, grids: tuple[Grid, ...], report: Report
) -> None:
    """Paint and encode the training scenes of these grids that are not there yet."""
    matrix_ZC, offset_C = encoder_matrix(vae, TOKEN_PX)
    for grid in grids:
        path = latents_path(folder, grid)
        if path.is_file():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        # One array, filled in place: kept one by one between the images' freed blocks, the small
        # results keep the heap from being reused, 12 MB for each of them.
        columns, rows = grid
        latent_BCYX = torch.empty(COUNTS[grid], len(offset_C), rows, columns, dtype=torch.float16)
        with torch.inference_mode():
            for index in range(COUNTS[grid]):
                rgb_1yx3 = to_rgb(paint_scene(train_scene(grid, index), art))
                latent_BCYX[index] = encode_images(rgb_1yx3, matrix_ZC, offset_C)[0]
        partial = path.with_name(f".{path.name}")
        np.save(partial.with_suffix(".npy"), latent_BCYX.numpy())
        partial.replace(path)
        line = f"{COUNTS[grid]} scenes of {grid[0]}x{grid[1]} tokens"
        append_line(folder / "latents.log", line)
        report(f"latents: {line}")


def load_latents(folder: Path, grid: Grid) -> npt.NDArray[np.float16]:
    """Return the latents of a grid, left on disk until they are read. Shapes: -> latent_BCYX."""
    latents: npt.NDArray[np.float16] = np.load(latents_path(folder, grid), mmap_mode="r")
    return latents
