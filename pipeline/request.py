"""Image requests and the events of their generation. Free of torch: the API process builds them."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from cache.plan import NO_REUSE, CachePlan
from pipeline.guidance_plan import PLAIN_GUIDANCE, GuidancePlan

ImageFormat = Literal["JPG", "PNG", "WEBP"]
Rewrite = Literal["off", "recaption", "think"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRequest:
    """Images to generate from one prompt: one image per seed, sizes in pixels.

    Without a size the model chooses one. With a rewrite it first writes a better prompt, for each
    image from the image's own seed. `images` are input images, the bytes of their files in the
    order of the prompt; with `align` each is stretched to a trained size instead of cut, and the
    result gets the ratio of the first one that has the result's trained size. `is_grid_fitted`: the
    scheduler steps over the sigmas that were fitted to the checkpoint, if there are any for so many
    steps.
    """

    prompt: str
    negative_prompt: str | None = None
    width_px: int | None = None
    height_px: int | None = None
    num_steps: int
    guidance: float
    seeds: tuple[int, ...]
    scheduler: str = "Default"
    is_grid_fitted: bool = False
    cache: CachePlan = NO_REUSE
    guidance_plan: GuidancePlan = PLAIN_GUIDANCE
    rewrite: Rewrite = "off"
    system_prompt: str | None = None
    images: tuple[bytes, ...] = field(default=(), repr=False)
    align: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnostics:
    """How an image was generated.

    `cache` names the policies; `window` is the steps [start, end) in which they may reuse one.
    `tea_threshold` and `fb_threshold` are what the request's values come to with this checkpoint's
    calibration, None where the policy is off. `num_evaluations` are those that layers computed, and
    `num_reused_evaluations` the others. `num_rows` went through the layers, `num_saved_rows` are
    what every evaluation with all its rows would have run besides. `guidance` is the plan with the
    checkpoint's interval in the place of `calibrated`. `text` is what the model wrote before the
    image.
    """

    cache: str
    num_steps: int
    reused_steps: tuple[int, ...]
    window: tuple[int, int]
    max_consecutive: int
    tea_threshold: float | None
    fb_threshold: float | None
    is_calibrated: bool
    num_evaluations: int
    scheduler: str
    resolved_scheduler: str
    sigma_schedule: str
    scheduler_status: str
    num_reused_evaluations: int = 0
    num_rows: int = 0
    num_saved_rows: int = 0
    guidance: GuidancePlan = PLAIN_GUIDANCE
    num_unguided_steps: int = 0
    text: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TextWritten:
    """The text that the model has written so far for an image, before it generates the image."""

    image: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptPrefilled:
    """The prompts of one image are in its KV cache; its denoising begins."""

    image: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepDone:
    """One denoising step of one image is finished; `step` counts from 1.

    `is_reused`: a step cache stood in for the layers. `preview_yx3` (uint8) is what the image would
    be if the model were sure of it now, small; only where previews are wanted.
    """

    image: int
    step: int
    num_steps: int
    is_reused: bool = False
    preview_yx3: npt.NDArray[np.uint8] | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImageDone:
    """One image is finished. Shapes: pixels_yx3 uint8."""

    image: int
    seed: int
    pixels_yx3: npt.NDArray[np.uint8] = field(repr=False)
    diagnostics: Diagnostics

    @property
    def width_px(self) -> int:
        return int(self.pixels_yx3.shape[1])

    @property
    def height_px(self) -> int:
        return int(self.pixels_yx3.shape[0])


Event = TextWritten | PromptPrefilled | StepDone | ImageDone
