"""From a job to its pictures: prompts, noise, the denoising loop, pixels, files.

Everything is a generator: progress is `yield`, cancelling is `close()`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from cache.build import build_step_cache
from model.prefix import Prefix
from model.resolution import find_size
from model.sequence import ImageSequence, build_guidance_rows
from model.template import Prompt
from model.transformer import HunyuanImage
from model.vae import to_uint8
from schedulers.build import Scheduler, build_scheduler
from server.messages import ImageDone, Job, JobDone, JobEvent, StepDone
from server.worker.denoise import ImageRun, denoise, start_run
from server.worker.diagnostics import build_signal, report_run
from server.worker.encode import encode_image
from server.worker.noise import NoiseStream, image_noise
from server.worker.parts import Parts


def draw(parts: Parts, job: Job) -> Iterator[JobEvent]:
    """Draw the pictures of a job, with an event after each step and picture.

    One at a time unless the settings say otherwise: at real sizes a picture already fills the
    processor, and its pixels then cannot depend on its neighbours, not even by rounding.
    """
    prefixes: dict[tuple[int, ...], Prefix] = {}
    for first in range(0, len(job.seeds), parts.batch_size):
        images = range(first, min(first + parts.batch_size, len(job.seeds)))
        yield from _draw_batch(parts, job, images, prefixes)
    yield JobDone(job_id=job.job_id)


def _draw_batch(
    parts: Parts, job: Job, images: range, prefixes: dict[tuple[int, ...], Prefix]
) -> Iterator[JobEvent]:
    """Draw some of a job's pictures together."""
    transformer = parts.transformer
    rows = build_job_rows(parts, job)
    scheduler = build_scheduler(job.scheduler, job.num_steps, parts.generation.flow_shift)
    runs = [_start_image(parts, job, job.seeds[i], rows, scheduler, prefixes) for i in images]
    for done in denoise(transformer, runs):
        yield StepDone(
            job_id=job.job_id,
            image=images[done.image],
            step=done.step + 1,
            num_steps=job.num_steps,
        )
    for image, run in zip(images, runs, strict=True):
        pixels_yx3 = decode_pixels(transformer, run.path.latent_BCYX)[0]
        yield ImageDone(
            job_id=job.job_id,
            image=image,
            seed=job.seeds[image],
            encoded=encode_image(pixels_yx3.cpu().numpy(), job.image_format, job.quality),
            diagnostics=report_run(parts, job, scheduler, run),
        )


def _start_image(
    parts: Parts,
    job: Job,
    seed: int,
    rows: tuple[ImageSequence, ...],
    scheduler: Scheduler,
    prefixes: dict[tuple[int, ...], Prefix],
) -> ImageRun:
    """Return a picture at the noise of its seed, with a step cache of its own."""
    transformer = parts.transformer
    channels = transformer.config.vae.latent_channels
    shape = (1, channels, rows[0].grid_height, rows[0].grid_width)
    stream = NoiseStream(seed, shape)
    return start_run(
        transformer,
        rows,
        image_noise(seed, shape),
        scheduler.solver,
        job.guidance,
        build_step_cache(job.cache, parts.calibration, build_signal(transformer, job.cache)),
        prefixes,
        lambda: stream.draw().to(transformer.device),
    )


def build_job_rows(parts: Parts, job: Job) -> tuple[ImageSequence, ...]:
    """Return the rows of one picture: the conditional and, with guidance, the unconditional one.

    Raises:
        ModelError: the size is not a trained one, or a prompt is too long.
    """
    config = parts.transformer.config
    negative = job.negative_prompt
    conditional, unconditional = build_guidance_rows(
        parts.template,
        parts.tokenizer,
        Prompt(text=job.prompt),
        None if negative is None else Prompt(text=negative),
        find_size(parts.sizes, job.width_px, job.height_px),
        config.pixels_per_token,
        config.max_positions,
    )
    return (conditional, unconditional) if job.guidance > 1 else (conditional,)


@torch.inference_mode()
def decode_pixels(transformer: HunyuanImage, latent_BCYX: Tensor) -> Tensor:
    """Return the pictures of latents. Shapes: latent_BCYX -> rgb_Byx3 uint8."""
    return to_uint8(transformer.vae.decode(latent_BCYX))
