"""The HTTP endpoints: one function each, a few lines each."""

import asyncio
import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import HTTPConnection

from server.api.auth import Keys
from server.api.dispatch import Caller, answer
from server.delivery.images import ImageStore, media_type
from server.metrics import Metrics
from server.runware.envelope import error_envelope, http_status
from server.runware.errors import TaskError
from server.runware.schemas import task_schema
from server.settings import Settings
from server.tasks.results import to_error_object
from server.tasks.service import TaskService

router = APIRouter()

RETRY_AFTER_S = 5

_TASK_ARRAY = {
    "requestBody": {
        "required": True,
        "description": "An array of tasks, or one task. The first may be an authentication.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "array",
                    "minItems": 1,
                    "items": task_schema(),
                }
            }
        },
    }
}


def _tasks(request: Request) -> TaskService:
    service: TaskService = request.app.state.tasks
    return service


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


Tasks = Annotated[TaskService, Depends(_tasks)]
Config = Annotated[Settings, Depends(_settings)]


@router.post("/v1", openapi_extra=_TASK_ARRAY)
@router.post("/v1/", include_in_schema=False)
async def run_tasks(request: Request, tasks: Tasks, settings: Config) -> JSONResponse:
    """Run an array of tasks and answer when all are finished; errors stay with their task."""
    try:
        body = await _read_body(request, settings.server.max_body_bytes)
        bodies, key = _take_key(parse_tasks(body), request.headers.get("authorization"))
        keys: Keys = request.app.state.keys
        owner = keys.check(key)
    except TaskError as e:
        return _failure([to_error_object(e)], e.code)
    base_url = public_base_url(settings, str(request.base_url))
    caller = Caller(
        owner, base_url, repeats_failures=True, has_diagnostics=wants_diagnostics(request)
    )
    outcomes = await asyncio.gather(*(_run_one(tasks, settings, b, caller) for b in bodies))
    data = [item for items, _ in outcomes for item in items]
    errors = [error for _, error in outcomes if error is not None]
    if not errors:
        return JSONResponse({"data": data})
    if not data:
        return _failure(errors, errors[0]["code"])
    return JSONResponse({"data": data, "errors": errors})


@router.get("/images/{name}", include_in_schema=False)
async def get_image(name: str, request: Request) -> Response:
    """Return a finished image; open to whoever knows its name."""
    images: ImageStore = request.app.state.images
    try:
        content = await images.load(name)
    except TaskError as e:
        return JSONResponse({"detail": e.message}, 503, {"Retry-After": str(RETRY_AFTER_S)})
    if content is None:
        return JSONResponse({"detail": "there is no such image, or it has expired"}, 404)
    return Response(content, media_type=media_type(name))


@router.get("/health")
async def health() -> dict[str, str]:
    """Tell that the server lives."""
    return {"status": "ok"}


@router.get("/ready")
async def ready(tasks: Tasks) -> JSONResponse:
    """Tell whether images can be generated, and with what; 503 until then."""
    status = tasks.engine.status
    body = {"ready": status.is_ready, "worker": status.description}
    return JSONResponse(body, 200 if status.is_ready else 503)


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request, tasks: Tasks) -> Response:
    """Return counters and timings for Prometheus."""
    counters: Metrics = request.app.state.metrics
    counters.running.set(tasks.num_running_tasks)
    counters.sockets.set(request.app.state.sessions.num_sockets)
    counters.ready.set(tasks.engine.status.is_ready)
    return Response(counters.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


def wants_diagnostics(connection: HTTPConnection) -> bool:
    """Return whether a client wants diagnostics with its results, by header or query."""
    values = (connection.headers.get("x-diagnostics"), connection.query_params.get("diagnostics"))
    return any(value in ("1", "true") for value in values)


def bearer_key(header: str | None) -> str | None:
    """Return the key of an Authorization header."""
    return header[7:].strip() if header and header.lower().startswith("bearer ") else None


def public_base_url(settings: Settings, own_url: str) -> str:
    """Return the address under which image URLs are given out."""
    return settings.server.public_url.rstrip("/") or own_url.rstrip("/")


def parse_tasks(body: bytes | str) -> list[object]:
    """Return the tasks of a request body or frame; a lone object is one task.

    Raises:
        TaskError: it is not JSON, or holds no task.
    """
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
        if ("\\u" if isinstance(body, str) else b"\\u") in body:  # type: ignore[operator]
            json.dumps(value, ensure_ascii=False).encode()  # fails on half a surrogate pair
    except (ValueError, RecursionError) as e:
        raise TaskError("invalidJSON", f"The request is not valid JSON: {e}.") from None
    tasks = value if isinstance(value, list) else [value]
    if not tasks:
        raise TaskError("arrayTooSmall", "The array of tasks is empty; send at least one task.")
    return tasks


async def _run_one(
    tasks: TaskService, settings: Settings, body: object, caller: Caller
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Return a task's items, and its error object if it has one."""
    items: list[dict[str, Any]] = []
    try:
        async for batch in answer(tasks, settings, body, caller):
            items += batch
    except TaskError as e:
        return items, to_error_object(e, body)
    return items, None


def _take_key(tasks: list[object], header: str | None) -> tuple[list[object], str | None]:
    """Return the tasks without an authentication, and the key that was given."""
    key = bearer_key(header)
    first = tasks[0]
    if isinstance(first, dict) and first.get("taskType") == "authentication":
        given = first.get("apiKey")
        return tasks[1:], given if isinstance(given, str) else key
    return tasks, key


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


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _failure(errors: list[dict[str, Any]], code: str) -> JSONResponse:
    status = http_status(code)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status in (429, 503) else None
    return JSONResponse(error_envelope(errors, []), status, headers)
