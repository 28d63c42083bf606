"""Text-to-image generation: how a prompt becomes images.

    prompt --rewrite--> prompt --size--> rows --prefill--> prompt KV
    noise --denoising steps: layers or step cache, guidance, solver--> latent --VAE--> pixels

Everything is a generator: progress is `yield`, cancelling is `close()`.
"""

from collections.abc import Generator, Iterator, Sequence
from itertools import groupby

from model.resolution import Size
from pipeline.denoise import ImageRun, denoise, start_run
from pipeline.load import Pipeline
from pipeline.noise import NoiseStream, image_noise
from pipeline.prompt import PreparedPrompt, choose_size, rewrite_prompts
from pipeline.report import report_run
from pipeline.request import Event, ImageDone, ImageRequest, StepDone
from pipeline.step_cache import new_step_cache
from schedulers.build import Scheduler, build_scheduler
from schedulers.trajectory import Trajectory


def generate(pipeline: Pipeline, request: ImageRequest) -> Generator[Event, None, None]:
    """Generate the images of a request; yield after each piece of text, each step and each image.

    Raises:
        ModelError: the checkpoint cannot rewrite prompts, the size is not a trained one, or a
            prompt and its image need more positions than the model has.
    """
    prompts = yield from rewrite_prompts(pipeline, request)
    sizes = [choose_size(pipeline, request, prompt) for prompt in prompts]
    for batch in _list_batches(sizes, pipeline.batch_size):
        yield from _generate_batch(pipeline, request, prompts, batch, sizes[batch[0]])


def _list_batches(sizes: Sequence[Size], batch_size: int) -> Iterator[list[int]]:
    """Yield the numbers of images to generate together: neighbours of one size.

    One at a time unless the settings say otherwise: at real sizes an image already fills the
    processor, and its pixels then cannot depend on its neighbours, not even by rounding.
    """
    for _, same_size in groupby(range(len(sizes)), key=sizes.__getitem__):
        images = list(same_size)
        for first in range(0, len(images), batch_size):
            yield images[first : first + batch_size]


def _generate_batch(
    pipeline: Pipeline,
    request: ImageRequest,
    prompts: Sequence[PreparedPrompt],
    images: Sequence[int],
    size: Size,
) -> Iterator[Event]:
    """Denoise and decode some of a request's images together."""
    scheduler = build_scheduler(
        request.scheduler,
        request.num_steps,
        pipeline.generation.flow_shift,
        is_distilled=pipeline.transformer.config.is_meanflow,
    )
    runs = [
        _start_image(pipeline, request, scheduler, prompts[image], request.seeds[image], size)
        for image in images
    ]
    for done in denoise(pipeline.transformer, runs):
        yield StepDone(image=images[done.image], step=done.step + 1, num_steps=request.num_steps)
    for image, run in zip(images, runs, strict=True):
        yield ImageDone(
            image=image,
            seed=request.seeds[image],
            pixels_yx3=pipeline.decode(run.trajectory.latent_BCYX)[0].cpu().numpy(),
            diagnostics=report_run(pipeline, request, scheduler, run, prompts[image]),
        )


def _start_image(
    pipeline: Pipeline,
    request: ImageRequest,
    scheduler: Scheduler,
    prompt: PreparedPrompt,
    seed: int,
    size: Size,
) -> ImageRun:
    """Prefill the prompts of one image and place it at the noise of its seed."""
    shape_BCYX = pipeline.latent_shape(size)
    device = pipeline.transformer.device
    fresh_noise = NoiseStream(seed, shape_BCYX)
    return start_run(
        pipeline.transformer,
        pipeline.rows(prompt.prompt, request.negative_prompt, size, request.guidance),
        Trajectory(
            scheduler.solver,
            image_noise(seed, shape_BCYX).to(device),
            lambda: fresh_noise.sample().to(device),
        ),
        request.guidance,
        new_step_cache(pipeline, request.cache),
        prompt.prompt_cache,
    )
