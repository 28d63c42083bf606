"""Images of captioned scenes from a loaded checkpoint, each with its score."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.generate import generate
from pipeline.guidance_plan import PLAIN_GUIDANCE, GuidancePlan
from pipeline.load import Pipeline
from pipeline.request import ImageDone, ImageRequest
from training.scenes import TOKEN_PX, Scene
from training.scorer import Score, score_image

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleOptions:
    """Steps, guidance and negative prompt of the images that are scored together."""

    num_steps: int = 20
    guidance: float = 5.0
    negative_prompt: str | None = None
    guidance_plan: GuidancePlan = PLAIN_GUIDANCE


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredImage:
    """One generated image, how long it took, and what is right in it. Shapes: pixels_yx3 uint8.

    `rows` is the share of all rows of its steps that went through the layers.
    """

    caption: str
    pixels_yx3: Pixels
    seconds: float
    rows: float
    score: Score


def generate_and_score(
    pipeline: Pipeline, captioned: Iterable[tuple[Scene, str]], options: SampleOptions, art: Path
) -> Iterator[ScoredImage]:
    """Generate each caption at its scene's size, the n-th from seed n, and score the image."""
    for seed, (scene, caption) in enumerate(captioned):
        start = time.perf_counter()
        done = _generate(pipeline, scene, caption, options, seed)
        seconds = time.perf_counter() - start
        num_rows, num_saved = done.diagnostics.num_rows, done.diagnostics.num_saved_rows
        yield ScoredImage(
            caption=caption,
            pixels_yx3=done.pixels_yx3,
            seconds=seconds,
            rows=num_rows / (num_rows + num_saved),
            score=score_image(done.pixels_yx3, scene, art),
        )


def generate_scene(
    pipeline: Pipeline, scene: Scene, caption: str, options: SampleOptions, seed: int
) -> Pixels:
    """Return the image that the server would send for a caption. Shapes: -> rgb_yx3."""
    return _generate(pipeline, scene, caption, options, seed).pixels_yx3


def _generate(
    pipeline: Pipeline, scene: Scene, caption: str, options: SampleOptions, seed: int
) -> ImageDone:
    request = ImageRequest(
        prompt=caption,
        negative_prompt=options.negative_prompt,
        width_px=scene.columns * TOKEN_PX,
        height_px=scene.rows * TOKEN_PX,
        num_steps=options.num_steps,
        guidance=options.guidance,
        seeds=(seed,),
        guidance_plan=options.guidance_plan,
    )
    return next(e for e in generate(pipeline, request) if isinstance(e, ImageDone))
