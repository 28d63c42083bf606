"""The HTTP endpoints: one function each, a few lines each."""

import asyncio
import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from server.api.errors import error_envelope, error_object, http_status
from server.api.schemas import ImageInference
from server.delivery.images import MEDIA_TYPES, ImageStore
from server.errors import TaskError
from server.settings import Settings
from server.tasks.service import TaskService

router = APIRouter()

RETRY_AFTER_S = 5


def _tasks(request: Request) -> TaskService:
    service: TaskService = request.app.state.tasks
    return service


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


Tasks = Annotated[TaskService, Depends(_tasks)]
Config = Annotated[Settings, Depends(_settings)]


@router.post(
    "/v1",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "array",
                        "minItems": 1,
                        "items": ImageInference.model_json_schema(),
                    }
                }
            },
        }
    },
)
@router.post("/v1/", include_in_schema=False)
async def run_tasks(request: Request, tasks: Tasks, settings: Config) -> JSONResponse:
    """Run an array of tasks and answer when all are finished; errors stay with their task."""
    try:
        bodies = _parse_body(await _read_body(request, settings.server.max_body_bytes))
    except TaskError as e:
        return _failure([error_object(e)], e.code)
    base_url = settings.server.public_url.rstrip("/") or str(request.base_url).rstrip("/")
    outcomes = await asyncio.gather(*(_run_one(tasks, body, base_url) for body in bodies))
    data = [item for items, _ in outcomes for item in items]
    errors = [error for _, error in outcomes if error is not None]
    if not errors:
        return JSONResponse({"data": data})
    if not data:
        return _failure(errors, errors[0]["code"])
    return JSONResponse({"data": data, "errors": errors})


@router.get("/images/{name}", include_in_schema=False)
async def get_image(name: str, request: Request) -> Response:
    """Return a finished picture; open to whoever knows its name."""
    images: ImageStore = request.app.state.images
    path = await images.find(name)
    if path is None:
        return JSONResponse({"detail": "there is no such image, or it has expired"}, 404)
    return FileResponse(path, media_type=MEDIA_TYPES[path.suffix[1:]])


@router.get("/health")
async def health() -> dict[str, str]:
    """Tell that the server lives."""
    return {"status": "ok"}


@router.get("/ready")
async def ready(tasks: Tasks) -> JSONResponse:
    """Tell whether pictures can be drawn, and with what; 503 until then."""
    status = tasks.engine.status
    body = {"ready": status.is_ready, "worker": status.description}
    return JSONResponse(body, 200 if status.is_ready else 503)


async def _run_one(
    tasks: TaskService, body: object, base_url: str
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Return a task's result items, or its error object."""
    try:
        return await tasks.run(_checked_type(body), base_url), None
    except TaskError as e:
        return [], error_object(e, body)


def _checked_type(body: object) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise TaskError("invalidTask", f"A task must be an object, not {type(body).__name__}.")
    task_type = body.get("taskType")
    if task_type is None:
        raise TaskError("missingTaskType", "Missing required parameter: 'taskType'.", "taskType")
    if task_type != "imageInference":
        raise TaskError(
            "unsupportedTaskType",
            f"Task type {str(task_type)[:80]!r} is not supported. It must be 'imageInference'.",
            "taskType",
            {"allowedValues": ["imageInference"]},
        )
    return body


async def _read_body(request: Request, limit: int) -> bytes:
    """Return the body, never holding more than the limit.

    Raises:
        TaskError: it is larger.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise TaskError("requestTooLarge", f"The request is larger than {limit} bytes.")
    return bytes(body)


def _parse_body(body: bytes) -> list[object]:
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
        if b"\\u" in body:
            json.dumps(value, ensure_ascii=False).encode()  # fails on half a surrogate pair
    except (ValueError, RecursionError) as e:
        raise TaskError("invalidJSON", f"The request body is not valid JSON: {e}.") from None
    tasks = value if isinstance(value, list) else [value]
    if not tasks:
        raise TaskError("arrayTooSmall", "The array of tasks is empty; send at least one task.")
    return tasks


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _failure(errors: list[dict[str, Any]], code: str) -> JSONResponse:
    status = http_status(code)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status in (429, 503) else None
    return JSONResponse(error_envelope(errors, []), status, headers)
