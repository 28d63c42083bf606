"""The OpenAI images form, translated onto the same tasks, for gateways that speak it.

Source: "Create image" of the OpenAI API reference.
"""

import time
import uuid
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Header
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from server.api.dispatch import Caller, run_task
from server.api.frames import BaseUrl, bearer_key
from server.api.state import State
from server.runware.envelope import http_status
from server.runware.errors import TaskError
from server.tasks.service import Client

router = APIRouter()

_KINDS = {401: "authentication_error", 429: "rate_limit_error"}


class ImageGeneration(BaseModel):
    """The fields that mean something here; any other is refused by name."""

    model_config = ConfigDict(extra="forbid", strict=True)
    prompt: str = Field(description="What to generate, 2 to 3000 characters.")
    model: str | None = Field(None, description="The served model, or left out.")
    n: int = Field(1, ge=1, le=20, description="Number of images.")
    size: str = Field("auto", description="WIDTHxHEIGHT, one of the offered sizes, or `auto`.")
    response_format: Literal["url", "b64_json"] = "url"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int = Field(95, ge=20, le=99, description="Quality of jpeg and webp.")
    user: str | None = Field(None, description="Not used.")
    quality: Literal["auto", "standard", "hd", "low", "medium", "high"] = Field(
        "auto", description="`low` generates 10 steps, `high` and `hd` 50, all others 20."
    )


@router.post("/v1/images/generations")
async def create_images(
    body: ImageGeneration,
    state: State,
    base_url: BaseUrl,
    authorization: Annotated[str | None, Header()] = None,
) -> JSONResponse:
    """Generate images; the OpenAI form of an imageInference task."""
    items: list[dict[str, Any]] = []
    try:
        owner = state.keys.check(bearer_key(authorization))
        task = _to_task(body, state.settings.api.model)
        caller = Caller(Client(owner, base_url), repeats_failures=False)
        async for batch in run_task(state, task, caller):
            items += cast(list[dict[str, Any]], batch)
    except TaskError as e:
        return _failure(e)
    form, key = (
        ("imageURL", "url") if body.response_format == "url" else ("imageBase64Data", "b64_json")
    )
    return JSONResponse({"created": int(time.time()), "data": [{key: i[form]} for i in items]})


def _to_task(body: ImageGeneration, model: str) -> dict[str, Any]:
    task: dict[str, Any] = {
        "taskType": "imageInference",
        "taskUUID": str(uuid.uuid4()),
        "model": body.model or model,
        "positivePrompt": body.prompt,
        "numberResults": body.n,
        "outputType": "URL" if body.response_format == "url" else "base64Data",
        "outputFormat": {"png": "PNG", "jpeg": "JPG", "webp": "WEBP"}[body.output_format],
        "outputQuality": body.output_compression,
        "steps": {"low": 10, "high": 50, "hd": 50}.get(body.quality, 20),
    }
    if body.size != "auto":
        width, _, height = body.size.partition("x")
        if not (width.isdecimal() and height.isdecimal()):
            raise TaskError(
                "invalidSize",
                f"size must be WIDTHxHEIGHT or auto, not '{body.size[:80]}'.",
                "size",
            )
        task |= {"width": int(width), "height": int(height)}
    return task


def _failure(error: TaskError) -> JSONResponse:
    status = http_status(error.code)
    content = {
        "message": error.message,
        "type": _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error"),
        "param": error.parameter if isinstance(error.parameter, str) else None,
        "code": error.code,
    }
    return JSONResponse({"error": content}, status)
