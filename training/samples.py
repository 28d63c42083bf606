"""Sample sheets of an exported checkpoint, its scores, and the curve of the loss."""

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

from training.captions import write_caption
from training.drawing import Painter, Sampling
from training.scenes import OFFERED, Scene, grid_of, list_held_scenes
from training.scorer import score_picture, summarize
from training.sheets import save_curve, save_sheet
from training.state import append_line
from training.transformer import METRICS_NAME

NUM_SAMPLES = 24
SEED = 4242


def list_held_captions(count: int, seed: int = SEED) -> list[tuple[Scene, str]]:
    """Return scenes that training never showed, and a complete caption of each."""
    rng = random.Random(seed)
    return [
        (scene, write_caption(scene, rng, is_complete=True).text)
        for scene in list_held_scenes(count, seed, OFFERED)
    ]


def save_samples(
    run: Path,
    checkpoint: Path,
    name: str = "samples",
    count: int = NUM_SAMPLES,
    sampling: Sampling | None = None,
) -> dict[str, float]:
    """Draw held-out captions into a sheet and return their scores."""
    sampling = sampling or Sampling(num_steps=20, guidance=5.0)
    painter = Painter(checkpoint)
    sizes = {grid_of(size): size for size in OFFERED}
    pictures, captions, scores = [], [], []
    start = time.monotonic()
    for scene, caption in list_held_captions(count):
        picture_yx3 = painter.draw(caption, sizes[scene.columns, scene.rows], sampling)
        score = score_picture(picture_yx3, scene, run / "art")
        scores.append(score)
        pictures.append(picture_yx3)
        captions.append(caption)
    seconds = (time.monotonic() - start) / count
    save_sheet(run / "sheets" / f"{name}.png", pictures, captions)
    points = list_points(run)
    save_curve(run / "sheets" / "loss.png", points, "flow loss by hours of training")
    shares = summarize(scores)
    line = {"hours": points[-1][0] if points else 0.0, **shares, "s_per_picture": seconds}
    append_line(run / "scores.jsonl", json.dumps(line))
    return shares


def list_points(run: Path) -> Sequence[tuple[float, float]]:
    """Return (hours, flow loss) at the offered sizes."""
    path = run / METRICS_NAME
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    values = [json.loads(line) for line in lines]
    return [(v["hours"], v["flow"]) for v in values if v["flow"] is not None]
