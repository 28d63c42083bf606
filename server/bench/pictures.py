"""Pictures for measurements, drawn by the server's own pipeline."""

import io
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from server.bench.similarity import Pixels
from server.errors import CommandError
from server.messages import ImageDone, Job
from server.worker.parts import Parts
from server.worker.pipeline import draw


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture, what it took in model evaluations, and in seconds with decoding.

    Shapes: pixels_yx3 uint8.
    """

    pixels_yx3: Pixels
    num_evaluations: int
    seconds: float


def draw_pixels(parts: Parts, job: Job) -> Drawn:
    """Draw the one picture of a PNG job."""
    start = time.perf_counter()
    (done,) = (event for event in draw(parts, job) if isinstance(event, ImageDone))
    seconds = time.perf_counter() - start
    with Image.open(io.BytesIO(done.encoded)) as picture:
        return Drawn(np.array(picture), int(done.diagnostics["modelEvaluations"]), seconds)


def new_square_job(side: int, text: str, seed: int, guidance: float, num_steps: int = 1) -> Job:
    """Return the job of one square picture, kept without loss."""
    return Job(
        job_id="bench",
        prompt=text,
        negative_prompt=None,
        width_px=side,
        height_px=side,
        num_steps=num_steps,
        guidance=guidance,
        seeds=(seed,),
        image_format="PNG",
        quality=95,
    )


def read_prompts(path: Path | None, count: int) -> list[str]:
    """Return the first prompts of a file, one a line, or of the list that comes with the product.

    Raises:
        CommandError: the file cannot be read, or holds fewer.
    """
    try:
        if path is None:
            text = resources.files("server.bench").joinpath("prompts.txt").read_text("utf-8")
        else:
            text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise CommandError(f"{path} cannot be read: {e}") from None
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if len(prompts) < count:
        raise CommandError(f"{path or 'the list'} holds {len(prompts)} prompts; {count} are wanted")
    return prompts[:count]
