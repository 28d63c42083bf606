"""Runs of images on a pipeline, driven step by step, and the layers' calls while they run."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from cache.plan import NO_REUSE, CachePlan
from pipeline.denoise import ImageRun, denoise, start_run
from pipeline.guidance_plan import PLAIN_GUIDANCE, GuidancePlan
from pipeline.load import Pipeline
from pipeline.noise import NoiseStream, image_noise
from pipeline.request import ImageRequest
from pipeline.step_cache import new_step_cache
from schedulers.build import build_scheduler
from schedulers.trajectory import Trajectory
from tests.unit.pipeline.rows import request_rows


def start(
    pipeline: Pipeline,
    image_request: ImageRequest,
    seed: int,
    plan: CachePlan = NO_REUSE,
    scheduler: str = "Euler",
    guidance_plan: GuidancePlan = PLAIN_GUIDANCE,
) -> ImageRun:
    """Return the run of a request's image from a seed, before its first step."""
    rows = request_rows(pipeline, image_request)
    channels = pipeline.transformer.config.vae.latent_channels
    shape = (1, channels, rows[0].grid_height, rows[0].grid_width)
    solver = build_scheduler(scheduler, image_request.num_steps, 3.0).solver
    return start_run(
        pipeline.transformer,
        rows,
        Trajectory(solver, image_noise(seed, shape), NoiseStream(seed, shape).sample),
        image_request.guidance,
        new_step_cache(pipeline, plan),
        plan=guidance_plan,
    )


def finish(pipeline: Pipeline, runs: Sequence[ImageRun]) -> list[Tensor]:
    """Run all steps and return the latents."""
    for _ in denoise(pipeline.transformer, runs):
        pass
    return [run.trajectory.latent_BCYX for run in runs]


@contextmanager
def counted_rows(pipeline: Pipeline) -> Iterator[list[int]]:
    """Yield a list that gets the number of rows of each call of the last layer."""
    rows: list[int] = []
    last = pipeline.transformer.layers[-1]
    handle = last.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    yield rows
    handle.remove()
