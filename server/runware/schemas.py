"""Schema of an imageInference task: every bound once, described for the OpenAPI page."""

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from pipeline.input_image import MAX_IMAGES
from schedulers.catalog import ACCEPTED
from server.runware.guidance_options import GuidanceOptions, with_presets
from server.runware.seeds import MAX_SEED
from server.runware.wire_values import (
    TOLERATED,
    accelerator_values,
    cleaned,
    format_name,
    listed,
    safety_mode,
    with_inputs,
)

BLANK_PROMPT = "__BLANK__"
MIN_PROMPT, MAX_PROMPT = 2, 3000
LONG_PROMPTS = "long_prompts"  # in the context of a validation: the limit above does not hold

OutputType = Literal["URL", "base64Data", "dataURI"]
Acceleration = Literal["none", "low", "medium", "high"]
UUID4 = r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-4[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}$"
HTTP_URL = r"^[hH][tT][tT][pP][sS]?://[^\s/]+\S*$"

_FORMS: dict[str, Any] = {"type": "string", "enum": list(get_args(OutputType))}
_ONE_OR_SEVERAL = {"anyOf": [{"type": "array", "minItems": 1, "items": _FORMS}, _FORMS]}

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)


def _known_scheduler(name: str) -> str:
    if name not in ACCEPTED:
        raise ValueError(f"It must be one of: {', '.join(map(repr, ACCEPTED))}.")
    return name


def _short(prompt: str, info: ValidationInfo) -> str:
    if len(prompt) > MAX_PROMPT and not (info.context or {}).get(LONG_PROMPTS):
        raise PydanticCustomError("string_too_long", "too long")
    return prompt


Prompt = Annotated[
    str,
    AfterValidator(_short),
    WithJsonSchema({"type": "string", "minLength": MIN_PROMPT, "maxLength": MAX_PROMPT}),
]


IMAGE_FORM = (
    "A UUID of an image that was uploaded or generated here, an http or https URL, a data URI, or "
    f"base64 text; with the other parameter at most {MAX_IMAGES}. Only for an Instruct checkpoint "
    "with `worker.image_inputs`; others refuse it."
)


def _few(images: list[str]) -> list[str]:
    if len(images) > MAX_IMAGES:
        raise ValueError(f"It must be an array of 1 to {MAX_IMAGES} images, not of {len(images)}.")
    return images


InputList = Annotated[list[Annotated[str, Field(min_length=1)]], AfterValidator(_few)]


class Safety(BaseModel):
    """Content checking."""

    model_config = _STRICT
    checkContent: bool = Field(False, description="Check the images; means mode `fast`.")
    mode: Annotated[Literal["none", "fast"], BeforeValidator(safety_mode)] = Field(
        "none", description="`fast`: one check per image; `full` means the same."
    )

    @model_validator(mode="before")
    @classmethod
    def _clean(cls, values: object) -> object:
        # Sent by one client, for video.
        return cleaned(cls, values, frozenset({"tolerance", "checkInputs"}))

    @property
    def is_on(self) -> bool:
        return self.checkContent or self.mode == "fast"


class AcceleratorOptions(BaseModel):
    """Step caches: which steps reuse the layers' output of an earlier step."""

    model_config = _STRICT
    teaCache: bool = Field(False, description="Skip steps whose input has hardly changed.")
    teaCacheDistance: float = Field(
        0.5, ge=0, le=1, multiple_of=0.01, description="0 = never reuse, 1 = most aggressive."
    )
    fbCache: bool = Field(
        False, description="Skip steps whose first layer has hardly changed its input."
    )
    fbCacheThreshold: float = Field(
        0.25, ge=0, le=1, multiple_of=0.01, description="Lower values reuse more aggressively."
    )
    cacheStartStep: int | None = Field(None, ge=0, description="First step that may be reused.")
    cacheEndStep: int | None = Field(None, ge=1, description="Step at which reuse ends.")
    cacheStartStepPercentage: int | None = Field(
        None, ge=0, le=99, description="The same as a share of the steps."
    )
    cacheEndStepPercentage: int | None = Field(
        None, ge=1, le=100, description="The same as a share of the steps."
    )
    cacheMaxConsecutiveSteps: int = Field(
        3, ge=1, le=5, description="Most steps reused in a row before one is computed."
    )

    @model_validator(mode="before")
    @classmethod
    def _clean(cls, values: object) -> object:
        return accelerator_values(cls, values)


class ForecastOptions(BaseModel):
    """Forecast what the layers add at a skipped step, instead of adding the last residual again.

    TeaCache or FBCache, whichever is on, decides which steps are skipped; TeaCache if neither is.
    """

    model_config = _STRICT
    order: int = Field(1, ge=1, le=2, description="Degree of the polynomial over the noise level.")
    contraction: float | None = Field(
        None, ge=0, le=1, description="Hermite polynomials scaled by this; Taylor's if left out."
    )
    interval: int | None = Field(
        None,
        ge=2,
        le=5,
        description="Compute every n-th step; replaces what the step caches would decide.",
    )

    @model_validator(mode="before")
    @classmethod
    def _clean(cls, values: object) -> object:
        return cleaned(cls, values)


class HunyuanOptions(BaseModel):
    """What this server can do beyond the hosted API."""

    model_config = _STRICT
    forecast: ForecastOptions | None = Field(
        None, description="Forecast what skipped steps add; alone or with teaCache or fbCache."
    )
    guidance: GuidanceOptions | None = Field(
        None,
        description="Where and how the image is guided; `interval` and `plain` name presets.",
        json_schema_extra=with_presets,
    )
    rewrite: Literal["off", "recaption", "think"] = Field(
        "off",
        description="Let an Instruct checkpoint rewrite the prompt, or think, before the image.",
    )
    systemPrompt: str | None = Field(
        None, min_length=2, max_length=8000, description="Instead of the checkpoint's own."
    )
    align: bool = Field(
        False,
        description="With input images: stretch each to a trained size instead of cutting it, and "
        "give the result the exact ratio of the first one that has the result's trained size.",
    )

    priority: int = Field(
        0, ge=-10, le=10, description="Order among the waiting tasks of one key; higher first."
    )
    previews: bool = Field(
        False, description="Make previews from the first step on; see the task's events."
    )

    @model_validator(mode="before")
    @classmethod
    def _clean(cls, values: object) -> object:
        return cleaned(cls, values)


class ImageInference(BaseModel):
    """Generate images from a prompt."""

    model_config = _STRICT

    taskType: Literal["imageInference"] = Field(description="The type of the task.")
    taskUUID: str = Field(pattern=UUID4, description="UUID v4 that names the task; once only.")
    model: str = Field(description="The model to generate with.", examples=["runware:180@1"])
    positivePrompt: Prompt = Field(
        min_length=MIN_PROMPT,
        description=f"What to generate. `{BLANK_PROMPT}` generates without a prompt.",
        examples=["A red car to the left of a panda in the snow"],
    )
    negativePrompt: Prompt | None = Field(
        None, min_length=MIN_PROMPT, description="What to keep away from."
    )
    seedImage: str | None = Field(
        None,
        min_length=1,
        description=f"The image to edit, the first input image. {IMAGE_FORM}",
    )
    referenceImages: InputList = Field(
        [],
        json_schema_extra={"maxItems": MAX_IMAGES},
        description=f"Input images, in the order in which the prompt means them. {IMAGE_FORM}",
    )
    width: int | None = Field(None, description="Width in pixels; needs `height`.", examples=[1024])
    height: int | None = Field(
        None, description="Height in pixels; needs `width`.", examples=[1024]
    )
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="Seed of the first image; random if left out."
    )
    steps: int = Field(20, ge=1, le=100, description="Number of denoising steps.")
    scheduler: Annotated[str, AfterValidator(_known_scheduler)] = Field(
        "Default",
        description="How to walk from noise to image.",
        examples=["Euler"],
        json_schema_extra={"enum": list(ACCEPTED)},
    )
    CFGScale: float = Field(
        7.0, ge=1.1, le=50, multiple_of=0.01, description="How closely to follow the prompt."
    )
    numberResults: int = Field(1, ge=1, le=20, description="Number of images.")
    outputType: Annotated[
        list[OutputType], BeforeValidator(listed), WithJsonSchema(_ONE_OR_SEVERAL)
    ] = Field(
        ["URL"],
        min_length=1,
        description="How images are returned: one form or several.",
        json_schema_extra={"default": "URL"},
    )
    outputFormat: Annotated[Literal["JPG", "PNG", "WEBP"], BeforeValidator(format_name)] = Field(
        "JPG", description="File format, in any case; `JPEG` means `JPG`."
    )
    outputQuality: int = Field(
        95, ge=20, le=99, description="Compression quality of JPG and WEBP; PNG is lossless."
    )
    deliveryMethod: Literal["sync", "async"] | None = Field(
        None, description="`async`: acknowledge at once, poll with getResponse."
    )
    webhookURL: str | None = Field(
        None, pattern=HTTP_URL, max_length=4096, description="Gets a POST per finished image."
    )
    uploadEndpoint: str | None = Field(
        None, pattern=HTTP_URL, max_length=8192, description="Gets a PUT of each image's bytes."
    )
    safety: Safety = Field(Safety(), description="Content checking.")
    checkNSFW: bool = Field(False, description="An older name of `safety.checkContent`.")
    ttl: int | None = Field(
        None, ge=60, description="Seconds that a URL stays valid; for `URL` alone."
    )
    includeCost: bool = Field(False, description="Return the cost, in USD, with each image.")
    reportProgress: bool = Field(
        False,
        description="Extension: on a WebSocket, send a `taskProgress` item for each event.",
    )
    acceleration: Acceleration | None = Field(
        None,
        description="Preset of the accelerator options, which reuses more from `none`, exact, over "
        "`low` and `medium` to `high`; explicit options win. Left out, the server's setting "
        "decides, and that is `none` unless changed.",
    )
    acceleratorOptions: AcceleratorOptions = Field(AcceleratorOptions(), description="Step caches.")
    hunyuan: HunyuanOptions = Field(
        HunyuanOptions(), description="Extensions of this server; not part of the hosted API."
    )

    @model_validator(mode="before")
    @classmethod
    def _clean(cls, values: object) -> object:
        return cleaned(cls, with_inputs(values), TOLERATED)

    @property
    def is_async(self) -> bool:
        """Whether the answer is an acknowledgement: requested, or implied by a webhook."""
        if self.deliveryMethod is None:
            return self.webhookURL is not None
        return self.deliveryMethod == "async"

    @property
    def is_checked(self) -> bool:
        return self.safety.is_on or self.checkNSFW
