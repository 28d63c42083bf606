"""Sigma schedules of a checkpoint: recorded trajectories, and grids fitted to them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cache.calibration import Calibration, FittedGrid, save_calibration
from model.resolution import Size
from model.template import Prompt
from pipeline.denoise import denoise, start_run
from pipeline.load import Pipeline, load_pipeline
from pipeline.noise import image_noise
from pipeline.settings import PipelineSettings
from schedulers.build import build_scheduler
from schedulers.fitted import Recorded, fit_grids
from schedulers.trajectory import Trajectory
from tools.earlier_calibration import load_earlier_calibration
from tools.progress import Report, ignore, megabytes

# 60 steps of UniPC come within 50 dB of 100 on the tiny checkpoint, 60 of LMS do not.
RECORDED_SCHEDULER = "UniPC"
FIRST_SEED = 1000  # the other measurements' seeds count from 0


@dataclass(frozen=True, kw_only=True, slots=True)
class GridSweep:
    """What is recorded and fitted.

    `ranges` holds a range [low, high) of guidance scales and the scale that stands for it. The
    recorded steps must be far shorter than those that are fitted.
    """

    ranges: tuple[tuple[float, float, float], ...] = (
        (1.0, 3.0, 2.0), (3.0, 6.0, 5.0), (6.0, 100.0, 7.0),
    )  # fmt: skip
    counts: tuple[int, ...] = tuple(range(4, 31))
    num_prompts: int = 8
    recorded_steps: int = 60


def recalibrate_grids(
    settings: PipelineSettings,
    texts: Sequence[str],
    report: Report = ignore,
    sweep: GridSweep = GridSweep(),
) -> Calibration:
    """Fit the grids of a calibrated checkpoint again; leave all else in its file.

    Raises:
        ModelError: the checkpoint is not usable.
        CommandError: it has no calibration yet.
    """
    folder = Path(settings.checkpoint)
    calibration = load_earlier_calibration(folder, "--grids-only")
    pipeline = load_pipeline(settings, megabytes(report, "loading"))
    calibration = replace(calibration, grids=fit_checkpoint_grids(pipeline, texts, report, sweep))
    save_calibration(folder, calibration)
    return calibration


def fit_checkpoint_grids(
    pipeline: Pipeline, texts: Sequence[str], report: Report, sweep: GridSweep = GridSweep()
) -> tuple[FittedGrid, ...]:
    """Record trajectories of square images for each range of guidance; return their grids."""
    size = min(pipeline.sizes, key=lambda size: abs(size.width_px / size.height_px - 1))
    texts = texts[: sweep.num_prompts]
    grids: list[FittedGrid] = []
    num_done, num_images = 0, len(sweep.ranges) * len(texts)
    for low, high, scale in sweep.ranges:
        recorded = []
        for index, text in enumerate(texts):
            report("recording trajectories", num_done, num_images)
            seed, num_steps = FIRST_SEED + index, sweep.recorded_steps
            recorded.append(record_trajectory(pipeline, text, size, scale, seed, num_steps))
            num_done += 1
        for sigmas in fit_grids(recorded, sweep.counts).values():
            rounded = tuple(round(sigma, 7) for sigma in sigmas)
            grids.append(FittedGrid(guidance=(low, high), sigmas=rounded))
    report("recording trajectories", num_done, num_images)
    return tuple(grids)


def record_trajectory(
    pipeline: Pipeline, text: str, size: Size, guidance: float, seed: int, num_steps: int
) -> Recorded:
    """Return the latents and guided velocities of an image along its many steps."""
    transformer = pipeline.transformer
    shape = pipeline.latent_shape(size)
    solver = build_scheduler(RECORDED_SCHEDULER, num_steps, pipeline.generation.flow_shift).solver
    run = start_run(
        transformer,
        pipeline.rows(Prompt(text=text), None, size, guidance),
        Trajectory(solver, image_noise(seed, shape).to(transformer.device)),
        guidance,
    )
    latents, velocities = [run.trajectory.query.latent_BCYX], []
    for done in denoise(transformer, [run]):
        is_last = run.trajectory.is_done
        latents.append(done.latent_BCYX if is_last else run.trajectory.query.latent_BCYX)
        velocities.append(done.guided_BCYX)
    return Recorded(solver.sigmas, torch.cat(latents).float(), torch.cat(velocities).float())
