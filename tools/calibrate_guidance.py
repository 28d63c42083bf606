"""Calibration of the guidance: up to which noise level a checkpoint is to be guided.

The loss of a high scale is in the first, noisiest steps, which decide where things stand; guided
there, an image is pushed to a place before it has one. Which bound is right depends on what the
checkpoint has learned, so a few are tried.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cache.calibration import Calibration, GuidanceInterval, save_calibration
from pipeline.generate import generate
from pipeline.guidance_plan import GuidancePlan
from pipeline.load import Pipeline, load_pipeline
from pipeline.request import ImageDone, ImageRequest
from pipeline.settings import PipelineSettings
from pipeline.vocabulary import read_vocabulary
from server.runware.errors import CommandError
from tools.bench.images import square_request
from tools.earlier_calibration import load_earlier_calibration
from tools.progress import Report, ignore, megabytes
from tools.similarity import Pixels, ssim
from training.art import fetch_art
from training.samples import list_held_captions
from training.scenes import KINDS, TOKEN_PX, Scene
from training.scorer import score_image

SCALE = 7.0  # the API's default
# Captions of their own: those of `hyimage bench adherence` stay unseen.
CAPTION_SEED = 1717
# The lowest bound may be this far from the best share of captions: two captions of 40.
TOLERANCE = 0.05
# Where nothing scores the images: how near they must stay to those guided at every step.
MIN_SSIM = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundSweep:
    """Which bounds are tried, from 1 down, on how many images of how many steps."""

    bounds: tuple[float, ...] = (1.0, 0.9, 0.85, 0.8, 0.75, 0.7)
    num_steps: int = 20  # the API's default
    num_captions: int = 40
    num_near: int = 8


@dataclass(frozen=True, slots=True)
class Tried:
    """A bound, its score, and the share of all rows that it runs."""

    high: float
    score: float
    rows: float


def find_art(folder: Path, art: Path) -> Path | None:
    """Return the artwork that scores a checkpoint's images, None if nothing scores them.

    Raises:
        CommandError: it cannot be fetched.
    """
    vocabulary = read_vocabulary(folder)
    words = {} if vocabulary is None else vocabulary.words()
    if not set(KINDS) <= {word for group in words.values() for word in group}:
        return None
    try:
        fetch_art(art)
    except RuntimeError as e:
        raise CommandError(
            f"the artwork that scores this checkpoint's images cannot be fetched: {e}; "
            f"copy it to {art}"
        ) from None
    return art


def recalibrate_guidance(
    settings: PipelineSettings, texts: Sequence[str], art: Path, report: Report = ignore
) -> Calibration:
    """Measure the interval of a calibrated checkpoint again; leave all else in its file.

    Raises:
        ModelError: the checkpoint is not usable.
        CommandError: it has no calibration yet.
    """
    folder = Path(settings.checkpoint)
    scoring = find_art(folder, art)
    calibration = load_earlier_calibration(folder, "--guidance-only")
    pipeline = load_pipeline(settings, megabytes(report, "loading"))
    interval = calibrate_guidance(pipeline, texts, scoring, report)
    calibration = replace(calibration, guidance=interval)
    save_calibration(folder, calibration)
    return calibration


def calibrate_guidance(
    pipeline: Pipeline,
    texts: Sequence[str],
    art: Path | None,
    report: Report = ignore,
    sweep: BoundSweep = BoundSweep(),
) -> GuidanceInterval:
    """Return the interval: the lowest bound that is as good as the best one.

    With artwork, by the share of held-out captions that come out right; without, by nearness of
    the first few texts' images to those that are guided at every step.
    """
    if art is not None:
        captioned = list_held_captions(sweep.num_captions, CAPTION_SEED)
        tried = _score(pipeline, captioned, art, report, sweep)
        chosen = choose_by_adherence(tried)
        count = len(captioned)
    else:
        near = list(texts[: sweep.num_near])
        tried = _compare(pipeline, near, report, sweep)
        chosen = choose_by_nearness(tried)
        count = len(near)
    return GuidanceInterval(
        low=0.0,
        high=chosen,
        measure="nearness" if art is None else "adherence",
        scale=SCALE,
        steps=sweep.num_steps,
        n=count,
        candidates=tuple(
            {"high": each.high, "score": each.score, "rows": each.rows} for each in tried
        ),
    )


def choose_by_adherence(tried: Sequence[Tried]) -> float:
    """Return the lowest bound whose share is within the tolerance of the best."""
    best = max(each.score for each in tried)
    return min(each.high for each in tried if each.score >= best - TOLERANCE - 1e-9)


def choose_by_nearness(tried: Sequence[Tried]) -> float:
    """Return the lowest bound at which images stay near; 1, guided everywhere, if none is."""
    return min((each.high for each in tried if each.score >= MIN_SSIM), default=1.0)


def _score(
    pipeline: Pipeline,
    captioned: Sequence[tuple[Scene, str]],
    art: Path,
    report: Report,
    sweep: BoundSweep,
) -> list[Tried]:
    requests = [
        replace(
            square_request(0, caption, seed, SCALE, sweep.num_steps),
            width_px=scene.columns * TOKEN_PX,
            height_px=scene.rows * TOKEN_PX,
        )
        for seed, (scene, caption) in enumerate(captioned)
    ]
    tried = []
    for high, (images, rows) in _generate_all(pipeline, requests, sweep.bounds, report):
        right = [
            score_image(image, scene, art).all
            for image, (scene, _) in zip(images, captioned, strict=True)
        ]
        tried.append(Tried(high, sum(right) / len(right), rows))
    return tried


def _compare(
    pipeline: Pipeline, texts: Sequence[str], report: Report, sweep: BoundSweep
) -> list[Tried]:
    side = pipeline.transformer.config.image_base_size
    requests = [
        square_request(side, text, seed, SCALE, sweep.num_steps) for seed, text in enumerate(texts)
    ]
    truths: list[Pixels] = []
    tried = []
    for high, (images, rows) in _generate_all(pipeline, requests, sweep.bounds, report):
        truths = truths or images  # the first bound guides every step
        score = statistics.median(ssim(a, b) for a, b in zip(images, truths, strict=True))
        tried.append(Tried(high, score, rows))
    return tried


def _generate_all(
    pipeline: Pipeline, requests: Sequence[ImageRequest], bounds: Sequence[float], report: Report
) -> Iterator[tuple[float, tuple[list[Pixels], float]]]:
    """Yield each bound with its images, and the share of all rows that they ran."""
    num_done = 0
    for high in bounds:
        images: list[Pixels] = []
        num_rows = num_saved = 0
        for request in requests:
            guided = replace(request, guidance_plan=GuidancePlan(interval=(0.0, high)))
            done = next(e for e in generate(pipeline, guided) if isinstance(e, ImageDone))
            images.append(done.pixels_yx3)
            num_rows += done.diagnostics.num_rows
            num_saved += done.diagnostics.num_saved_rows
            num_done += 1
            report("guiding", num_done, len(bounds) * len(requests))
        yield high, (images, num_rows / (num_rows + num_saved))
