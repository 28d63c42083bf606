"""From the checked parameters of a task to the request that the pipeline generates."""

from collections.abc import Sequence

from pipeline.request import ImageRequest
from server.runware.cache_options import build_cache_plan, wants_fitted_grid
from server.runware.guidance_options import GuidancePreset, build_guidance_plan
from server.runware.schemas import BLANK_PROMPT, ImageInference
from server.settings import CacheSettings


def to_image_request(
    parameters: ImageInference,
    size_px: tuple[int, int] | None,
    seeds: Sequence[int],
    cache: CacheSettings,
    default_guidance: GuidancePreset = "plain",
    images: Sequence[bytes] = (),
) -> ImageRequest:
    """Return the request for one image per seed; without a size the model chooses one.

    `images` are the files of the input images.
    """
    plan, _ = build_cache_plan(parameters, cache)
    width_px, height_px = size_px or (None, None)
    prompt, negative = parameters.positivePrompt, parameters.negativePrompt
    return ImageRequest(
        prompt="" if prompt == BLANK_PROMPT else prompt,
        negative_prompt=None if negative == BLANK_PROMPT else negative,
        width_px=width_px,
        height_px=height_px,
        num_steps=parameters.steps,
        guidance=parameters.CFGScale,
        seeds=tuple(seeds),
        scheduler=parameters.scheduler,
        is_grid_fitted=wants_fitted_grid(parameters, cache),
        cache=plan,
        guidance_plan=build_guidance_plan(parameters.hunyuan.guidance, default_guidance),
        rewrite=parameters.hunyuan.rewrite,
        system_prompt=parameters.hunyuan.systemPrompt,
        images=tuple(images),
        align=parameters.hunyuan.align,
    )
