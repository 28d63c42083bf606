"""Calibration of a checkpoint's sigma schedules: recorded trajectories, and grids fitted to them."""

from collections.abc import Sequence

import torch

from cache.calibration import FittedGrid
from model.resolution import Size
from model.template import Prompt
from pipeline.denoise import denoise, start_run
from pipeline.load import Pipeline
from pipeline.noise import image_noise
from schedulers.build import build_scheduler
from schedulers.fitted import Recorded, fit_grids
from schedulers.trajectory import Trajectory
from tools.progress import Report

# A guidance scale is recorded for a range of scales: [low, high) and where it is recorded.
RANGES = ((1.0, 3.0, 2.0), (3.0, 6.0, 5.0), (6.0, 50.0, 7.0))
GRID_STEPS = tuple(range(4, 31))
NUM_GRID_PROMPTS, RECORDED_STEPS = 8, 60
# The steps of a trajectory must be far shorter than those that are fitted to it.
# Source: 60 steps of UniPC come within 50 dB of 100 on the tiny checkpoint, 60 of LMS do not.
RECORDED_SCHEDULER = "UniPC"


def fit_checkpoint_grids(
    pipeline: Pipeline, texts: Sequence[str], size: Size, report: Report
) -> tuple[FittedGrid, ...]:
    """Record trajectories at each range's guidance scale; return the grids of 4 to 30 steps.

    The seeds follow after those of the other measurements of a calibration.
    """
    grids: list[FittedGrid] = []
    num_done, num_images = 0, len(RANGES) * len(texts)
    for low, high, scale in RANGES:
        recorded = []
        for index, text in enumerate(texts):
            report("recording trajectories", num_done, num_images)
            recorded.append(record_trajectory(pipeline, text, size, scale, 1000 + index))
            num_done += 1
        fitted = fit_grids(recorded, GRID_STEPS)
        grids += [
            FittedGrid(guidance=(low, high), sigmas=tuple(round(s, 7) for s in sigmas))
            for sigmas in fitted.values()
        ]
    report("recording trajectories", num_done, num_images)
    return tuple(grids)


def record_trajectory(
    pipeline: Pipeline,
    text: str,
    size: Size,
    guidance: float,
    seed: int,
    num_steps: int = RECORDED_STEPS,
) -> Recorded:
    """Return the latents and guided velocities of an image along its many steps."""
    transformer = pipeline.transformer
    shape = pipeline.latent_shape(size)
    solver = build_scheduler(
        RECORDED_SCHEDULER, num_steps, pipeline.generation.flow_shift
    ).solver
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
