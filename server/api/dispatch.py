"""One task of any type to its answer, the same for both transports.

An answer is a stream of batches: HTTP puts them all into one response, a WebSocket sends each as a
frame of its own.
"""

import base64
import binascii
import re
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from server.runware.envelope import http_status
from server.runware.errors import TaskError
from server.runware.validation import parse_image_inference
from server.settings import Settings
from server.tasks.service import TaskService

Batch = list[dict[str, Any]]

TASK_TYPES = (
    "imageInference", "getResponse", "getTaskDetails", "authentication", "ping", "imageUpload",
    "mediaStorage", "modelSearch", "accountManagement",
)  # fmt: skip

_DATA_URI = re.compile(r"data:image/(png|jpeg|webp);base64,", re.IGNORECASE)
_EXTENSIONS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"RIFF": "webp"}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and under which address the server is known to them."""

    owner: str
    base_url: str
    # HTTP clients send a task that failed with a 5xx again under its old UUID; those on a socket
    # ask what became of it.
    repeats_failures: bool
    has_diagnostics: bool = False


async def answer(
    tasks: TaskService, settings: Settings, body: object, caller: Caller
) -> AsyncIterator[Batch]:
    """Yield the batches of items that answer one task.

    Raises:
        TaskError: the task was refused, or it failed.
    """
    task = _checked(body)
    match task["taskType"]:
        case "imageInference":
            async for batch in _draw(tasks, task, caller):
                yield batch
        case "getResponse":
            yield await tasks.poll(_task_uuid(task), caller.owner, caller.has_diagnostics)
        case "getTaskDetails":
            yield [await tasks.details(_task_uuid(task), caller.owner)]
        case "ping":
            yield [{"taskType": "ping", "pong": True} | _echo_uuid(task)]
        case "imageUpload":
            yield [await _store_upload(tasks, task, "image", "image", caller)]
        case "mediaStorage":
            yield [await _store_upload(tasks, task, "media", "media", caller)]
        case "modelSearch":
            yield [_search(tasks, settings, task)]
        case "accountManagement":
            yield [_account(task)]


def _checked(body: object) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise TaskError("invalidTask", f"A task must be an object, not {type(body).__name__}.")
    task_type = body.get("taskType")
    if task_type is None:
        raise TaskError("missingTaskType", "Missing required parameter: 'taskType'.", "taskType")
    if task_type not in TASK_TYPES:
        raise TaskError(
            "unsupportedTaskType",
            f"Task type {str(task_type)[:80]!r} is not supported. "
            f"It must be one of: {', '.join(map(repr, TASK_TYPES))}.",
            "taskType",
            {"allowedValues": list(TASK_TYPES)},
        )
    return body


async def _draw(tasks: TaskService, task: dict[str, Any], caller: Caller) -> AsyncIterator[Batch]:
    parsed = parse_image_inference(task, tasks.facts.default_steps)
    task_uuid = await tasks.admit(parsed, caller.owner, caller.base_url)
    if parsed.is_async:
        # Nothing more: a client would take an imageUUID here for the finished image.
        yield [{"taskType": "imageInference", "taskUUID": task_uuid}]
        return
    try:
        async for item in tasks.follow(task_uuid, caller.has_diagnostics):
            yield [item]
    except TaskError as e:
        if caller.repeats_failures and http_status(e.code) >= 500:
            await tasks.release(task_uuid)
        raise


def _task_uuid(task: dict[str, Any]) -> str:
    value = task.get("taskUUID")
    if value is None:
        raise TaskError("missingTaskUUID", "Missing required parameter: 'taskUUID'.", "taskUUID")
    if not isinstance(value, str):
        raise TaskError(
            "invalidTaskUUID",
            "Invalid value for 'taskUUID' parameter. It must be a string.",
            "taskUUID",
            {"type": "string"},
        )
    return value


def _echo_uuid(task: dict[str, Any]) -> dict[str, str]:
    value = task.get("taskUUID")
    return {"taskUUID": value} if isinstance(value, str) else {}


async def _store_upload(
    tasks: TaskService, task: dict[str, Any], parameter: str, prefix: str, caller: Caller
) -> dict[str, Any]:
    """Keep an image that a client sends as a data URI or base64 text."""
    value = task.get(parameter)
    if not isinstance(value, str):
        raise TaskError(
            f"missing{parameter.capitalize()}",
            f"Missing required parameter: '{parameter}', a data URI or base64 text.",
            parameter,
        )
    try:
        content = base64.b64decode(_DATA_URI.sub("", value, count=1), validate=True)
    except (binascii.Error, ValueError):
        content = b""
    extension = next((e for magic, e in _EXTENSIONS.items() if content.startswith(magic)), None)
    if extension is None:
        raise TaskError(
            f"invalid{parameter.capitalize()}",
            f"Invalid value for '{parameter}' parameter. It must be a PNG, JPEG or WEBP image as "
            "a data URI or base64 text.",
            parameter,
        )
    image_uuid = str(uuid.uuid4())
    name = f"{image_uuid}.{extension}"
    await tasks.keep_upload(image_uuid, name, content)
    return {
        "taskType": task["taskType"],
        **_echo_uuid(task),
        f"{prefix}UUID": image_uuid,
        f"{prefix}URL": f"{caller.base_url}/images/{name}",
    }


def _search(tasks: TaskService, settings: Settings, task: dict[str, Any]) -> dict[str, Any]:
    sizes = tasks.facts.sizes
    square = next(size for size in sizes if size.width_px == size.height_px)
    default = next((s for s in sizes if str(s) == settings.api.default_size), square)
    model = {
        "air": settings.api.model,
        "name": "HunyuanImage-3.0",
        "version": "3.0",
        "category": "checkpoint",
        "architecture": "hunyuan_image_3",
        "tags": ["text-to-image"],
        "heroImage": "",
        "private": False,
        "comment": "",
        "type": "base",
        "defaultWidth": default.width_px,
        "defaultHeight": default.height_px,
    }
    words = str(task.get("search") or "").lower().split()
    text = f"{model['air']} {model['name']} {model['architecture']}".lower()
    found = [model] if all(word in text for word in words) else []
    offset = task.get("offset")
    shown = found[offset:] if isinstance(offset, int) and offset > 0 else found
    return {
        "taskType": "modelSearch",
        **_echo_uuid(task),
        "results": shown,
        "totalResults": len(found),
    }


def _account(task: dict[str, Any]) -> dict[str, Any]:
    if task.get("operation", "getDetails") != "getDetails":
        raise TaskError(
            "unsupportedOperation",
            "This server keeps no usage statistics per account; operation must be 'getDetails'.",
            "operation",
            {"allowedValues": ["getDetails"]},
        )
    nothing = {"credits": 0, "requests": 0}
    return {
        "taskType": "accountManagement",
        **_echo_uuid(task),
        "operation": "getDetails",
        "organizationUUID": "00000000-0000-4000-8000-000000000000",
        "organizationName": "self-hosted",
        "balance": 0,
        "team": [],
        "apiKeys": [],
        "usage": {"total": nothing, "today": nothing, "last7Days": nothing, "last30Days": nothing},
    }
