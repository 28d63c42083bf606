"""Sample sheets of an exported checkpoint, its scores, and the curve of the loss."""

import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.captions import write_caption
from training.drawing import Draw, Painter, Sampling
from training.plot import read_metrics
from training.scenes import OFFERED, Scene, grid_of, list_held_scenes
from training.scorer import Score, score_image, summarize
from training.sheets import save_sheet
from training.state import append_line

NUM_SAMPLES = 24
SEED = 4242


def list_held_captions(count: int, seed: int = SEED) -> list[tuple[Scene, str]]:
    """Return scenes that training never showed, and a complete caption of each."""
    rng = random.Random(seed)
    return [
        (scene, write_caption(scene, rng, is_complete=True).text)
        for scene in list_held_scenes(count, seed, OFFERED)
    ]


def draw_and_score(
    draw: Draw, captioned: Sequence[tuple[Scene, str]], sampling: Sampling, art: Path
) -> Iterator[tuple[npt.NDArray[np.uint8], Score]]:
    """Draw each caption at its scene's size, with a seed of its own, and score it."""
    sizes = {grid_of(size): size for size in OFFERED}
    for index, (scene, caption) in enumerate(captioned):
        own = replace(sampling, seed=sampling.seed + index)
        image_yx3 = draw(caption, sizes[scene.columns, scene.rows], own)
        yield image_yx3, score_image(image_yx3, scene, art)


def save_samples(
    run: Path,
    checkpoint: Path,
    name: str = "samples",
    count: int = NUM_SAMPLES,
    sampling: Sampling | None = None,
) -> dict[str, float]:
    """Draw held-out captions into a sheet and return their scores."""
    captioned = list_held_captions(count)
    start = time.monotonic()
    painter = Painter(checkpoint)
    drawn = list(draw_and_score(painter.draw, captioned, sampling or Sampling(), run / "art"))
    seconds = (time.monotonic() - start) / count
    sheet = run / "sheets" / f"{name}.png"
    save_sheet(sheet, [image for image, _ in drawn], [caption for _, caption in captioned])
    rows = read_metrics(run)
    shares = summarize([score for _, score in drawn])
    line = {
        "hours": rows[-1]["hours"] if rows else 0.0,
        **{part: round(share, 3) for part, share in shares.items()},
        "s_per_image": round(seconds, 2),
    }
    append_line(run / "scores.jsonl", json.dumps(line))
    return shares
