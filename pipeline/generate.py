"""Generation: how a prompt, with or without input images, becomes images.

    input images  --VAE and vision tower-->  tokens of the prompt
    prompt   --rewrite-->  prompt  --choose a size-->  rows  --prefill-->  KV cache
    noise    --denoising steps: layers or step cache, guidance, solver-->  latent
    latent   --VAE-->  pixels; between steps a linear map makes previews

Everything is a generator: progress is `yield`, cancelling is `close()`.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt

from model.resolution import Size
from pipeline.denoise import Denoised, ImageRun, denoise, estimate_image, start_run
from pipeline.guidance import resolve_guidance
from pipeline.input_image import aligned_size, resize_pixels
from pipeline.load import Pipeline
from pipeline.noise import NoiseStream, image_noise, to_device
from pipeline.prompt import PreparedPrompt, choose_sizes, rewrite_prompts
from pipeline.report import report_run
from pipeline.request import Event, ImageDone, ImageRequest, PromptPrefilled, StepDone
from pipeline.step_cache import new_step_cache
from schedulers.build import Scheduler, build_scheduler
from schedulers.trajectory import Trajectory


def no_previews() -> bool:
    """Return that no preview is wanted."""
    return False


def generate(
    pipeline: Pipeline, request: ImageRequest, wants_preview: Callable[[], bool] = no_previews
) -> Generator[Event, None, None]:
    """Generate the images of a request; yield after each piece of text, each step and each image.

    After each step `wants_preview` decides whether its event has a preview; pixels do not depend
    on it.

    Raises:
        ModelError: the checkpoint cannot rewrite prompts, the size is not a trained one, an input
            image cannot be used, or a prompt and its images need more positions than the model has.
    """
    prompts = yield from rewrite_prompts(pipeline, request)
    sizes = choose_sizes(pipeline, request, prompts)
    scheduler = build_scheduler(
        request.scheduler,
        request.num_steps,
        pipeline.generation.flow_shift,
        is_distilled=pipeline.transformer.config.is_meanflow,
        fitted=_fitted_sigmas(pipeline, request),
    )
    for batch in _list_batches(sizes, pipeline.batch_size):
        runs: list[ImageRun] = []
        for i in batch:
            runs.append(
                _start_image(pipeline, request, scheduler, prompts[i], sizes[i], request.seeds[i])
            )
            yield PromptPrefilled(image=i)
        for done in denoise(pipeline.transformer, runs):
            run = runs[done.image]
            yield StepDone(
                image=batch[done.image],
                step=done.step + 1,
                num_steps=request.num_steps,
                is_reused=run.is_reused(done.step),
                preview_yx3=_preview(pipeline, run, done) if wants_preview() else None,
            )
        for i, run in zip(batch, runs, strict=True):
            yield ImageDone(
                image=i,
                seed=request.seeds[i],
                pixels_yx3=_finish(pipeline, request, prompts[i], sizes[i], run),
                diagnostics=report_run(pipeline, request, scheduler, run, prompts[i]),
            )
        # The caches of this batch would take memory beside those of the next one.
        del runs, run
        if request.images:  # each image has its own
            for i in batch:
                prompts[i].prompt_cache.clear()


def _fitted_sigmas(pipeline: Pipeline, request: ImageRequest) -> tuple[float, ...] | None:
    """Return the checkpoint's own sigmas for a request that wants them, if it has any."""
    if not request.is_grid_fitted:
        return None
    return pipeline.calibration.find_grid(request.num_steps, request.guidance)


def _start_image(
    pipeline: Pipeline,
    request: ImageRequest,
    scheduler: Scheduler,
    prompt: PreparedPrompt,
    size: Size,
    seed: int,
) -> ImageRun:
    """Prefill the prompts of one image and place it at the noise of its seed."""
    device, shape_BCYX = pipeline.transformer.device, pipeline.latent_shape(size)
    rows = pipeline.rows(prompt.prompt, request.negative_prompt, size, request.guidance)
    fresh_noise = NoiseStream(seed, shape_BCYX)
    trajectory = Trajectory(
        scheduler.solver,
        to_device(image_noise(seed, shape_BCYX), device),
        lambda: to_device(fresh_noise.sample(), device),
    )
    plan, _ = resolve_guidance(request.guidance_plan, pipeline.calibration, len(rows))
    return start_run(
        pipeline.transformer,
        rows,
        trajectory,
        request.guidance,
        new_step_cache(pipeline, request.cache),
        prompt.prompt_cache,
        plan,
    )


def _finish(
    pipeline: Pipeline, request: ImageRequest, prompt: PreparedPrompt, size: Size, run: ImageRun
) -> npt.NDArray[np.uint8]:
    """Return the pixels of a finished image, with `align` resized to an input image's ratio."""
    pixels_yx3: npt.NDArray[np.uint8]
    pixels_yx3 = pipeline.decode(run.trajectory.latent_BCYX)[0].cpu().numpy()
    if not request.align:
        return pixels_yx3
    base_size = pipeline.transformer.config.image_base_size
    wanted_wh = aligned_size(prompt.upright_wh, size, pipeline.sizes, base_size)
    if wanted_wh == (size.width_px, size.height_px):
        return pixels_yx3
    return resize_pixels(pixels_yx3, *wanted_wh)


def _preview(pipeline: Pipeline, run: ImageRun, done: Denoised) -> npt.NDArray[np.uint8] | None:
    if pipeline.preview_map is None:
        return None
    return pipeline.preview_map.render(estimate_image(run, done))


def _list_batches(sizes: Sequence[Size], batch_size: int) -> Iterator[list[int]]:
    """Yield the numbers of images to generate together: neighbours of one size.

    One at a time unless the settings say otherwise: at real sizes an image already fills the
    processor, and its pixels then cannot depend on its neighbours, not even by rounding.
    """
    for _, same_size in groupby(range(len(sizes)), key=sizes.__getitem__):
        images = list(same_size)
        for first in range(0, len(images), batch_size):
            yield images[first : first + batch_size]
