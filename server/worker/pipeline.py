"""From a job to its pictures: prompts, noise, the denoising loop, pixels, files.

Everything is a generator: progress is `yield`, cancelling is `close()`.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from cache.build import build_step_cache
from model.prefix import Prefixes
from model.resolution import Size
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
from server.worker.words import Written, choose_size, write_prompts


def draw(parts: Parts, job: Job) -> Iterator[JobEvent]:
    """Draw the pictures of a job, with an event after each step and picture.

    One at a time unless the settings say otherwise: at real sizes a picture already fills the
    processor, and its pixels then cannot depend on its neighbours, not even by rounding.
    """
    written = yield from write_prompts(parts, job)
    sizes = [choose_size(parts, job, own) for own in written]
    for size, together in groupby(range(len(job.seeds)), key=lambda image: sizes[image]):
        images = list(together)
        for first in range(0, len(images), parts.batch_size):
            batch = images[first : first + parts.batch_size]
            yield from _draw_batch(parts, job, batch, written, size)
    yield JobDone(job_id=job.job_id)


def _draw_batch(
    parts: Parts,
    job: Job,
    images: Sequence[int],
    written: Sequence[Written],
    size: Size,
) -> Iterator[JobEvent]:
    """Draw some of a job's pictures together."""
    transformer = parts.transformer
    scheduler = build_scheduler(
        job.scheduler,
        job.num_steps,
        parts.generation.flow_shift,
        is_distilled=transformer.config.is_meanflow,
    )
    runs = []
    for image in images:
        rows = build_rows(parts, job, written[image].prompt, size)
        runs.append(
            _start_image(parts, job, job.seeds[image], rows, scheduler, written[image].prefixes)
        )
    for done in denoise(transformer, runs):
        yield StepDone(
            job_id=job.job_id,
            image=images[done.image],
            step=done.step + 1,
            num_steps=job.num_steps,
        )
    for image, run in zip(images, runs, strict=True):
        yield ImageDone(
            job_id=job.job_id,
            image=image,
            seed=job.seeds[image],
            encoded=_finish_picture(parts, job, run.path.latent_BCYX),
            width_px=size.width_px,
            height_px=size.height_px,
            diagnostics=report_run(parts, job, scheduler, run, written[image]),
        )


def _start_image(
    parts: Parts,
    job: Job,
    seed: int,
    rows: tuple[ImageSequence, ...],
    scheduler: Scheduler,
    prefixes: Prefixes,
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
        build_step_cache(
            job.cache,
            parts.calibration,
            build_signal(transformer, job.cache),
            transformer.mesh.all_agree,
        ),
        prefixes,
        lambda: stream.draw().to(transformer.device),
    )


def build_rows(parts: Parts, job: Job, prompt: Prompt, size: Size) -> tuple[ImageSequence, ...]:
    """Return the rows of one picture: the conditional and, with guidance, the unconditional one.

    A guidance-distilled model needs no second row.

    Raises:
        PromptTooLongError: a prompt and its picture need more positions than the model has.
    """
    config = parts.transformer.config
    negative = job.negative_prompt
    conditional, unconditional = build_guidance_rows(
        parts.template,
        parts.tokenizer,
        prompt,
        None if negative is None else Prompt(text=negative, system_prompt=prompt.system_prompt),
        size,
        config,
    )
    is_alone = job.guidance <= 1 or config.is_guidance_distilled
    return (conditional,) if is_alone else (conditional, unconditional)


def _finish_picture(parts: Parts, job: Job, latent_BCYX: Tensor) -> bytes:
    """Return the file of a picture. All ranks decode it; only the first has it to show."""
    pixels_yx3 = decode_pixels(parts.transformer, latent_BCYX)[0]
    if not parts.transformer.mesh.is_first:
        return b""
    return encode_image(pixels_yx3.cpu().numpy(), job.image_format, job.quality)


@torch.inference_mode()
def decode_pixels(transformer: HunyuanImage, latent_BCYX: Tensor) -> Tensor:
    """Return the pictures of latents. Shapes: latent_BCYX -> rgb_Byx3 uint8."""
    return to_uint8(transformer.vae.decode(latent_BCYX, transformer.mesh.whole))
