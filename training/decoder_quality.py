"""Quality of an autoencoder: PSNR of whole scenes, and how far the grid of its tokens shows.

By hand: `python -m training.decoder_quality CHECKPOINT [--count 50]`.
"""

import argparse
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from model.loading.build import load_model
from model.loading.options import LoadOptions
from model.vae import Vae, to_uint8
from training.art import fetch_art
from training.scenes import TOKEN_PX, choose_size, grid_of, make_scene, paint_scene

# Scenes that no training draws from: this seed is used for nothing else.
SEED = 77
NUM_SCENES, NUM_SHOWN = 50, 6
ART_FOLDER = Path("~/.cache/hyimage-training/art")

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderQuality:
    """Means over scenes; `painted_blockiness` is that of the same scenes before encoding."""

    psnr_db: float
    blockiness: float
    painted_blockiness: float

    def __str__(self) -> str:
        return (
            f"PSNR {self.psnr_db:.2f} dB, blockiness {self.blockiness:.2f} "
            f"(as painted {self.painted_blockiness:.2f})"
        )


def measure_blockiness(pixels_yx3: Pixels) -> float:
    """Return the mean absolute gradient at multiples of 64 px over the mean one elsewhere.

    1 is an image in which the grid of tokens does not show. Painted scenes lie below it, because
    things keep a margin to their tokens' edges. An even image, without any gradient, has 1.
    """
    at_edges, elsewhere = [], []
    for axis in (0, 1):
        change_Z = np.abs(np.diff(pixels_yx3.astype(np.float32), axis=axis)).mean(
            axis=(1 - axis, 2)
        )
        is_edge_Z = np.arange(1, len(change_Z) + 1) % TOKEN_PX == 0
        at_edges.append(change_Z[is_edge_Z])
        elsewhere.append(change_Z[~is_edge_Z])
    edge, other = (float(np.concatenate(parts).mean()) for parts in (at_edges, elsewhere))
    if other == 0:
        return 1.0 if edge == 0 else float("inf")
    return edge / other


def measure_psnr(decoded_yx3: Pixels, wanted_yx3: Pixels) -> float:
    """Return the PSNR in dB of one image."""
    mse = np.square(decoded_yx3.astype(np.float32) - wanted_yx3).mean()
    return float(10 * np.log10(255**2 / max(mse, 1e-9)))


@torch.no_grad()
def decode_scenes(vae: Vae, art: Path, count: int) -> Iterator[tuple[Pixels, Pixels]]:
    """Yield scenes of all sizes as painted, and as encoded and decoded. Shapes: rgb_yx3 each."""
    rng = random.Random(SEED)
    for _ in range(count):
        pixels_yx3 = paint_scene(make_scene(rng, *grid_of(choose_size(rng)), split="any"), art)
        rgb_B3yx = torch.from_numpy(pixels_yx3).movedim(-1, 0)[None].float() / 127.5 - 1
        yield pixels_yx3, to_uint8(vae.decode(vae.encode(rgb_B3yx)[0]))[0].numpy()


def measure_decoder(
    vae: Vae, art: Path, count: int
) -> tuple[DecoderQuality, list[tuple[Pixels, Pixels]]]:
    """Return the quality over `count` unseen scenes, always the same ones, and the first pairs."""
    rows: list[tuple[float, float, float]] = []
    shown: list[tuple[Pixels, Pixels]] = []
    for before, after in decode_scenes(vae, art, count):
        blockiness = (measure_blockiness(after), measure_blockiness(before))
        rows.append((measure_psnr(after, before), *blockiness))
        if len(shown) < NUM_SHOWN:
            shown.append((before, after))
    psnr_db, blockiness_mean, painted = np.mean(rows, axis=0).tolist()
    quality = DecoderQuality(
        psnr_db=psnr_db, blockiness=blockiness_mean, painted_blockiness=painted
    )
    return quality, shown


def load_vae(checkpoint: Path) -> Vae:
    """Return the autoencoder of a checkpoint in float32, its encoder too."""
    return load_model(checkpoint, LoadOptions(dtype=torch.float32, skip=())).vae


def main(arguments: list[str]) -> None:
    """Measure a checkpoint's autoencoder and print a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--count", type=int, default=NUM_SCENES, help="number of scenes")
    parser.add_argument("--art", type=Path, default=ART_FOLDER, help="where the artwork is kept")
    asked = parser.parse_args(arguments)
    art = asked.art.expanduser()
    fetch_art(art)
    quality, _ = measure_decoder(load_vae(asked.checkpoint), art, asked.count)
    sys.stdout.write(f"{asked.count} scenes: {quality}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
