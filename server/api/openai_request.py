"""Requests of the OpenAI images form: their schema, and the tasks that they mean.

Source: "Create image" of the OpenAI API reference, and what its clients send.
"""

import math
import uuid
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.resolution import Size
from pipeline.checkpoint_info import CheckpointInfo
from server.api.openai_errors import first_fault
from server.runware.errors import TaskError
from server.runware.wire_values import cleaned
from server.settings import ApiSettings

# Sizes of OpenAI's own models, which clients send because they know no others.
OPENAI_SIZES = (
    "256x256", "512x512", "1024x1024", "1536x1024", "1024x1536", "1792x1024", "1024x1792",
)  # fmt: skip
# These models return base64 unless the request says otherwise, and clients rely on it.
BASE64_MODELS = ("gpt-image", "chatgpt-image")

_QUALITY_STEPS = {"low": 10, "high": 50, "hd": 50}
_MIN_QUALITY, _MAX_QUALITY = 20, 99  # of outputQuality


class ImageGeneration(BaseModel):
    """A request for images. `null` counts as absent; fields without a meaning here are ignored."""

    model_config = ConfigDict(extra="forbid", strict=True)
    prompt: str = Field(description="What to generate; at least 2 characters.")
    model: str | None = Field(None, description="The served model or one of its aliases.")
    n: int = Field(1, ge=1, le=20, description="Number of images.")
    size: str = Field(
        "auto",
        description="WIDTHxHEIGHT, or `auto`: the model chooses. OpenAI's sizes give the offered "
        "size of the nearest shape; `size` of the answer is what was generated.",
    )
    response_format: Literal["url", "b64_json"] | None = Field(
        None, description="By default `url`, and `b64_json` for `gpt-image` models."
    )
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int = Field(
        100, ge=0, le=100, description="Quality of jpeg and webp, brought into 20 to 99."
    )
    quality: Literal["auto", "standard", "hd", "low", "medium", "high"] = Field(
        "auto",
        description="`low` generates 10 steps, `high` and `hd` 50, all others the default. A "
        "distilled checkpoint always generates its own number.",
    )
    background: Literal["auto", "opaque", "transparent"] = Field(
        "auto", description="`transparent` is refused: images have no alpha channel."
    )
    stream: bool = Field(False, description="Send events: partial images, then the image.")
    partial_images: int = Field(
        0, ge=0, le=3, description="With `stream`: so many small images on the way, as base64."
    )
    moderation: str | None = Field(None, description="Ignored.")
    style: str | None = Field(None, description="Ignored.")
    user: str | None = Field(None, description="Ignored.")
    safety_identifier: str | None = Field(None, description="Ignored.")
    seed: int | None = Field(None, description="Extension: `seed` of an imageInference task.")
    steps: int | None = Field(None, description="Extension: `steps`; wins over quality.")
    negative_prompt: str | None = Field(None, description="Extension: `negativePrompt`.")
    guidance_scale: float | None = Field(None, description="Extension: `CFGScale`.")

    @property
    def event_prefix(self) -> Literal["image_generation", "image_edit"]:
        """How the names of streamed events begin."""
        return "image_generation"

    @property
    def has_base64(self) -> bool:
        """Whether images are returned in the answer, and not as URLs."""
        if self.stream:
            return True
        if self.response_format is None:
            return (self.model or "").startswith(BASE64_MODELS)
        return self.response_format == "b64_json"

    @property
    def drawn_quality(self) -> Literal["low", "medium", "high"]:
        """The quality that the answer names: one of OpenAI's three."""
        match self.quality:
            case "low":
                return "low"
            case "high" | "hd":
                return "high"
            case _:
                return "medium"


def parse_generation(body: object, api: ApiSettings) -> ImageGeneration:
    """Return a checked request.

    Raises:
        TaskError: the first fault, with the code and parameter names of OpenAI.
    """
    if not isinstance(body, dict):
        raise TaskError("invalid_type", "The request must be a JSON object.")
    try:
        parsed = ImageGeneration.model_validate(cleaned(ImageGeneration, body))
    except ValidationError as e:
        raise first_fault(e) from None
    check_generation(parsed, api)
    return parsed


def check_generation(parsed: ImageGeneration, api: ApiSettings) -> None:
    """Refuse what no schema says: models that are not served, and fields that exclude each other.

    Raises:
        TaskError: the first fault.
    """
    models = (api.model, *api.model_aliases, *api.openai_models)
    refusals = {
        "background": (
            parsed.background == "transparent",
            "'transparent' is not supported: images have no alpha channel.",
        ),
        "partial_images": (
            parsed.partial_images > 0 and not parsed.stream,
            "partial images are streamed; send stream: true, or 0.",
        ),
        "response_format": (
            parsed.stream and parsed.response_format == "url",
            "streamed images are base64; leave it out, or send 'b64_json'.",
        ),
        "model": (
            parsed.model is not None and parsed.model not in models,
            f"'{(parsed.model or '')[:80]}'. It must be one of: {', '.join(map(repr, models))}.",
        ),
    }
    for name, (is_refused, reason) in refusals.items():
        if is_refused:
            raise TaskError("invalid_value", f"Invalid value for '{name}': {reason}", name)


def to_task(body: ImageGeneration, model: str, info: CheckpointInfo) -> dict[str, Any]:
    """Return the imageInference task that a request means.

    Raises:
        TaskError: the size is not offered.
    """
    quality = max(_MIN_QUALITY, min(_MAX_QUALITY, body.output_compression))
    steps = body.steps
    if steps is None and info.default_steps is None:
        steps = _QUALITY_STEPS.get(body.quality)
    width_px, height_px = _size(body.size, info.sizes)
    return {
        "taskType": "imageInference",
        "taskUUID": str(uuid.uuid4()),
        "model": model,
        "positivePrompt": body.prompt,
        "negativePrompt": body.negative_prompt,
        "numberResults": body.n,
        "outputType": "base64Data" if body.has_base64 else "URL",
        "outputFormat": body.output_format,
        "outputQuality": quality,
        "steps": steps,
        "seed": body.seed,
        "CFGScale": body.guidance_scale,
        "width": width_px,
        "height": height_px,
        "hunyuan": {"previews": body.partial_images > 0},
    }


def _size(size: str, offered: Sequence[Size]) -> tuple[int | None, int | None]:
    """Return the pixels of a size, both None for `auto`."""
    if size == "auto":
        return None, None
    found = next((s for s in offered if str(s) == size), None)
    if found is None and size in OPENAI_SIZES:
        found = _nearest(size, offered)
    if found is None:
        names = [str(s) for s in offered]
        raise TaskError(
            "invalid_value",
            f"Invalid value for 'size': '{size[:80]}'. Supported values are: 'auto', "
            f"{', '.join(map(repr, dict.fromkeys((*names, *OPENAI_SIZES))))}.",
            "size",
        )
    return found.width_px, found.height_px


def _nearest(size: str, offered: Sequence[Size]) -> Size:
    """Return the offered size of the nearest shape."""
    width, height = map(int, size.split("x"))
    return min(
        offered, key=lambda s: abs(math.log(s.width_px / s.height_px) - math.log(width / height))
    )
