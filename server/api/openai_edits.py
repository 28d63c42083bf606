"""Edits in the OpenAI form: the multipart body, as its clients send it, and the task that it means.

Source: "Create image edit" of the OpenAI API reference, and what the `openai` SDK sends.
"""

import asyncio
import base64
from typing import Any, Literal

from fastapi import Request
from pydantic import Field, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from pipeline.input_image import MAX_IMAGES
from server.api.openai_errors import first_fault
from server.api.openai_request import ImageGeneration, check_generation
from server.runware.errors import TaskError
from server.settings import ApiSettings

# More than are taken, so that the refusal can say how many are.
MAX_FILES = 16
MAX_FIELDS = 64
IMAGE_FIELDS = ("image", "image[]")
FILE = {"type": "string", "format": "binary"}


class ImageEdit(ImageGeneration):
    """A request for edited images. Empty fields count as absent; those without a meaning here too.

    The images stand beside these fields, as files under `image` or `image[]`.
    """

    prompt: str = Field(description="What to change, and in which image; at least 2 characters.")
    input_fidelity: str | None = Field(None, description="Ignored.")

    @property
    def event_prefix(self) -> Literal["image_generation", "image_edit"]:
        return "image_edit"


async def read_edit(
    request: Request, api: ApiSettings, max_part_bytes: int
) -> tuple[ImageEdit, list[str]]:
    """Return the checked fields of a multipart request, and its images as a task has them.

    Raises:
        TaskError: the first fault, with the code and parameter names of OpenAI.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise TaskError(
            "invalid_type",
            "The request must be multipart/form-data with the images as files, as "
            "`curl -F image=@a.png` and `images.edit` of the openai SDK send it.",
        )
    try:
        form = await request.form(
            max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=max_part_bytes
        )
    except (HTTPException, ValueError, KeyError) as e:
        reason = e.detail if isinstance(e, HTTPException) else str(e)
        message = f"The request is not valid multipart/form-data: {reason}"
        raise TaskError("invalid_multipart", message) from None
    try:
        fields, images = await _split(form)
    finally:
        await form.close()
    return _parse(fields, api), _checked(images)


async def _split(form: FormData) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of a form that are text, and its images as a task has them.

    Raises:
        TaskError: it has another file.
    """
    fields: dict[str, Any] = {}
    images: list[str] = []
    for name, value in form.multi_items():
        if name == "mask":
            raise TaskError(
                "invalid_value",
                "Invalid value for 'mask': masks are not supported, the model reads whole "
                "images. Leave it out, and say in the prompt what to change.",
                "mask",
            )
        if name in IMAGE_FIELDS:
            text = await _image_text(value)
            if not text:
                place = f"image[{len(images)}]"
                message = f"Invalid value for '{place}': the file is empty, 0 bytes."
                raise TaskError("invalid_value", message, place)
            images.append(text)
        elif isinstance(value, UploadFile):
            raise TaskError(
                "unknown_parameter",
                f"Unknown parameter: '{name[:80]}', a file. Send images as 'image' or 'image[]'.",
                name[:80],
            )
        elif value:
            fields[name] = value
    return fields, images


def _parse(fields: dict[str, Any], api: ApiSettings) -> ImageEdit:
    try:
        # Not strict: every field of a form is text.
        body = ImageEdit.model_validate(fields, strict=False)
    except ValidationError as e:
        raise first_fault(e) from None
    check_generation(body, api)
    return body


def _checked(images: list[str]) -> list[str]:
    if not images:
        message = "Missing required parameter: 'image', a file; or several as 'image[]'."
        raise TaskError("missing_required_parameter", message, "image")
    if len(images) > MAX_IMAGES:
        raise TaskError(
            "invalid_value",
            f"Invalid value for 'image': {len(images)} images; at most {MAX_IMAGES} are taken.",
            "image",
        )
    return images


async def _image_text(value: UploadFile | str) -> str:
    """Return an image as a task has it; a text is a UUID, URL, data URI or base64 already."""
    if isinstance(value, str):
        return value
    content = await value.read()
    return (await asyncio.to_thread(base64.b64encode, content)).decode("ascii")
