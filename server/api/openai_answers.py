"""Answers of the OpenAI form, typed for the OpenAPI page.

Source: "The image generation response" and "The model object" of the OpenAI API reference.
"""

from typing import Literal, NotRequired

from typing_extensions import TypedDict  # pydantic needs it before Python 3.12


class GeneratedImage(TypedDict):
    """An image in the form that was requested."""

    url: NotRequired[str]
    b64_json: NotRequired[str]


class GeneratedImages(TypedDict):
    """The images of one request, and how they were generated."""

    created: int
    data: list[GeneratedImage]
    background: Literal["opaque"]
    output_format: Literal["png", "jpeg", "webp"]
    quality: Literal["low", "medium", "high"]
    size: str | None


class OpenAIModel(TypedDict):
    """One name of the served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class OpenAIModels(TypedDict):
    """All names of the served model."""

    object: Literal["list"]
    data: list[OpenAIModel]


class OpenAIError(TypedDict):
    """What went wrong, in OpenAI's words and the caller's parameter names."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIFailure(TypedDict):
    """The body of every failure."""

    error: OpenAIError
