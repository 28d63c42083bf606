"""From a job to its images: prompts, noise, the denoising loop, pixels, files.

Everything is a generator: progress is `yield`, cancelling is `close()`.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from cache.build import build_step_cache
from model.kv_cache import PromptKVCache
from model.resolution import Size
from model.sequence import ImageSequence, build_guidance_rows
from model.template import Prompt
from model.transformer import HunyuanImage
from model.vae import to_uint8
from pipeline.denoise import ImageRun, denoise, start_run
from pipeline.encode import encode_image
from pipeline.load import Pipeline
from pipeline.noise import NoiseStream, image_noise
from pipeline.prompt import PreparedPrompt, choose_size, rewrite_prompts
from pipeline.report import build_signal, report_run
from schedulers.build import Scheduler, build_scheduler
from server.engine.messages import ImageDone, Job, JobDone, JobEvent, StepDone


def generate(pipeline: Pipeline, job: Job) -> Iterator[JobEvent]:
    """Generate the images of a job, with an event after each step and image.

    One at a time unless the settings say otherwise: at real sizes an image already fills the
    processor, and its pixels then cannot depend on its neighbours, not even by rounding.
    """
    written = yield from rewrite_prompts(pipeline, job)
    sizes = [choose_size(pipeline, job, own) for own in written]
    for size, together in groupby(range(len(job.seeds)), key=lambda image: sizes[image]):
        images = list(together)
        for first in range(0, len(images), pipeline.batch_size):
            batch = images[first : first + pipeline.batch_size]
            yield from _generate_batch(pipeline, job, batch, written, size)
    yield JobDone(job_id=job.job_id)


def _generate_batch(
    pipeline: Pipeline,
    job: Job,
    images: Sequence[int],
    written: Sequence[PreparedPrompt],
    size: Size,
) -> Iterator[JobEvent]:
    """Generate some of a job's images together."""
    transformer = pipeline.transformer
    scheduler = build_scheduler(
        job.scheduler,
        job.num_steps,
        pipeline.generation.flow_shift,
        is_distilled=transformer.config.is_meanflow,
    )
    runs = []
    for image in images:
        rows = build_rows(pipeline, job, written[image].prompt, size)
        runs.append(
            _start_image(
                pipeline, job, job.seeds[image], rows, scheduler, written[image].prompt_cache
            )
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
            encoded=_decode_image(pipeline, job, run.trajectory.latent_BCYX),
            width_px=size.width_px,
            height_px=size.height_px,
            diagnostics=report_run(pipeline, job, scheduler, run, written[image]),
        )


def _start_image(
    pipeline: Pipeline,
    job: Job,
    seed: int,
    rows: tuple[ImageSequence, ...],
    scheduler: Scheduler,
    prompt_cache: PromptKVCache,
) -> ImageRun:
    """Return an image at the noise of its seed, with a step cache of its own."""
    transformer = pipeline.transformer
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
            pipeline.calibration,
            build_signal(transformer, job.cache),
            transformer.mesh.all_true,
        ),
        prompt_cache,
        lambda: stream.generate().to(transformer.device),
    )


def build_rows(
    pipeline: Pipeline, job: Job, prompt: Prompt, size: Size
) -> tuple[ImageSequence, ...]:
    """Return the rows of one image: the conditional and, with guidance, the unconditional one.

    A guidance-distilled model needs no second row.

    Raises:
        PromptTooLongError: a prompt and its image need more positions than the model has.
    """
    config = pipeline.transformer.config
    negative = job.negative_prompt
    conditional, unconditional = build_guidance_rows(
        pipeline.template,
        pipeline.tokenizer,
        prompt,
        None if negative is None else Prompt(text=negative, system_prompt=prompt.system_prompt),
        size,
        config,
    )
    is_alone = job.guidance <= 1 or config.is_guidance_distilled
    return (conditional,) if is_alone else (conditional, unconditional)


def _decode_image(pipeline: Pipeline, job: Job, latent_BCYX: Tensor) -> bytes:
    """Return the file of an image. All ranks decode it; only the first has it to show."""
    pixels_yx3 = decode_pixels(pipeline.transformer, latent_BCYX)[0]
    if not pipeline.transformer.mesh.is_first:
        return b""
    return encode_image(pixels_yx3.cpu().numpy(), job.image_format, job.quality)


@torch.inference_mode()
def decode_pixels(transformer: HunyuanImage, latent_BCYX: Tensor) -> Tensor:
    """Return the images of latents. Shapes: latent_BCYX -> rgb_Byx3 uint8."""
    return to_uint8(transformer.vae.decode(latent_BCYX, transformer.mesh.whole))
