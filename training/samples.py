"""Sample sheets and scores of an exported checkpoint, from captions that training left out."""

import json
import random
from pathlib import Path

from pipeline.load import load_pipeline
from pipeline.settings import PipelineSettings
from training.captions import write_caption
from training.plot import read_metrics
from training.scenes import OFFERED, Scene, list_held_scenes
from training.scorer import summarize
from training.scoring import SampleOptions, generate_and_score
from training.sheets import save_sheet
from training.state import append_line

NUM_SAMPLES = 24
SEED = 4242


def list_held_captions(count: int, seed: int = SEED) -> list[tuple[Scene, str]]:
    """Return scenes that training left out, and a complete caption of each."""
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
    options: SampleOptions | None = None,
) -> dict[str, float]:
    """Generate held-out captions into a sheet and return their scores."""
    pipeline = load_pipeline(PipelineSettings(checkpoint=str(checkpoint)))
    captioned = list_held_captions(count)
    scored = list(generate_and_score(pipeline, captioned, options or SampleOptions(), run / "art"))
    save_sheet(
        run / "sheets" / f"{name}.png",
        [image.pixels_yx3 for image in scored],
        [image.caption for image in scored],
    )
    rows = read_metrics(run)
    shares = summarize([image.score for image in scored])
    line = {
        "hours": rows[-1]["hours"] if rows else 0.0,
        **{part: round(share, 3) for part, share in shares.items()},
        "s_per_image": round(sum(image.seconds for image in scored) / count, 2),
    }
    append_line(run / "scores.jsonl", json.dumps(line))
    return shares
