"""The generation loop. It reads like the algorithm: embed, run the layers, guide, step.

Everything is a generator: progress is `yield`, cancelling is `close()`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cache.off import Off
from cache.protocol import StepCache
from model.prefix import build_step_groups
from model.resolution import find_size
from model.sequence import ImageSequence, build_guidance_rows
from model.template import Prompt
from model.transformer import HunyuanImage
from model.vae import to_uint8
from schedulers.euler import Euler
from schedulers.grids import shifted_sigmas, timesteps_of
from schedulers.protocol import Solver
from server.messages import ImageDone, Job, JobDone, JobEvent, StepDone
from server.worker.encode import encode_image
from server.worker.noise import image_noise
from server.worker.parts import Parts


@dataclass(frozen=True, slots=True)
class Denoised:
    """A step's outcome: latents after it, velocities of [conditional; unconditional]."""

    step: int
    latent_BCYX: Tensor
    velocity_BCYX: Tensor


def draw(parts: Parts, job: Job) -> Iterator[JobEvent]:
    """Draw the pictures of a job one after another, with an event after each step and picture.

    One at a time: at real sizes a picture already fills the processor, and its pixels then cannot
    depend on its neighbours, not even by rounding.
    """
    transformer = parts.transformer
    rows = build_job_rows(parts, job)
    solver = Euler(shifted_sigmas(job.num_steps, parts.generation.flow_shift))
    shape = (1, transformer.config.vae.latent_channels, rows[0].grid_height, rows[0].grid_width)
    for image, seed in enumerate(job.seeds):
        latent_BCYX = image_noise(seed, shape).to(transformer.device)
        for done in denoise(transformer, rows, latent_BCYX, job.guidance, solver, Off()):
            latent_BCYX = done.latent_BCYX
            yield StepDone(
                job_id=job.job_id, image=image, step=done.step + 1, num_steps=job.num_steps
            )
        pixels_yx3 = decode_pixels(transformer, latent_BCYX)[0]
        encoded = encode_image(pixels_yx3.cpu().numpy(), job.image_format, job.quality)
        yield ImageDone(job_id=job.job_id, image=image, seed=seed, encoded=encoded)
    yield JobDone(job_id=job.job_id)


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
def denoise(
    transformer: HunyuanImage,
    rows: Sequence[ImageSequence],
    latent_BCYX: Tensor,
    guidance: float,
    solver: Solver,
    step_cache: StepCache,
) -> Iterator[Denoised]:
    """Move latents from noise to a picture along the solver's grid.

    Shapes: latent_BCYX float32. `rows` are B conditional rows, then B unconditional ones if
    `guidance` is above 1, all with the latents' grid.
    """
    groups = build_step_groups(transformer, rows)
    branches = len(rows) // latent_BCYX.shape[0]
    grid = (latent_BCYX.shape[2], latent_BCYX.shape[3])
    for step, timestep in enumerate(timesteps_of(solver.sigmas).to(latent_BCYX.device)):
        timestep_B = timestep.expand(latent_BCYX.shape[0])
        # The branches start from the same latents: embed once, then repeat.
        x_BSD = transformer.embed_step(latent_BCYX, timestep_B).repeat(branches, 1, 1)
        x_BSD = step_cache.run(step, x_BSD, lambda x: transformer.run_layers(x, groups))
        velocity_BCYX = transformer.predict_velocity(x_BSD, timestep_B.repeat(branches), grid)
        guided_BCYX = guide(velocity_BCYX, guidance) if branches == 2 else velocity_BCYX
        latent_BCYX = solver.step(latent_BCYX, guided_BCYX, step)
        yield Denoised(step, latent_BCYX, velocity_BCYX)


def guide(velocity_BCYX: Tensor, guidance: float) -> Tensor:
    """Combine [conditional; unconditional] velocities, float32.

    Source: Ho and Salimans 2022 (arXiv 2207.12598).
    """
    conditional_BCYX, unconditional_BCYX = velocity_BCYX.float().chunk(2)
    return unconditional_BCYX + guidance * (conditional_BCYX - unconditional_BCYX)


@torch.inference_mode()
def decode_pixels(transformer: HunyuanImage, latent_BCYX: Tensor) -> Tensor:
    """Return the pictures of latents. Shapes: latent_BCYX -> rgb_Byx3 uint8."""
    return to_uint8(transformer.vae.decode(latent_BCYX))
