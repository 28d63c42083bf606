"""Dispatch of one task of any type, the same for both transports.

The answer is a stream of lists of items: HTTP puts them all into one response, a WebSocket sends
each list as a frame of its own.
"""

import base64
import binascii
import re
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal, assert_never, cast, get_args

from server.api.state import AppState
from server.runware.envelope import Item, http_status
from server.runware.errors import TaskError
from server.runware.validation import parse_image_inference
from server.settings import ApiSettings
from server.tasks.service import Client, TaskService

TaskType = Literal[
    "imageInference", "getResponse", "getTaskDetails", "authentication", "ping", "imageUpload",
    "mediaStorage", "modelSearch", "accountManagement",
]  # fmt: skip
TASK_TYPES: tuple[TaskType, ...] = get_args(TaskType)

_DATA_URI = re.compile(r"data:image/(png|jpeg|webp);base64,", re.IGNORECASE)
_EXTENSIONS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"RIFF": "webp"}


@dataclass(frozen=True, slots=True)
class Caller:
    """A client on its transport.

    HTTP clients send a task that failed with a 5xx again under its old UUID; those on a socket
    poll what became of it.
    """

    client: Client
    repeats_failures: bool


async def run_task(state: AppState, body: object, caller: Caller) -> AsyncIterator[list[Item]]:
    """Yield the items that answer one task, as they are finished.

    Raises:
        TaskError: the task was refused, or it failed.
    """
    task, task_type = _checked(body)
    tasks, client = state.tasks, caller.client
    match task_type:
        case "imageInference":
            async for items in _generate(tasks, task, caller):
                yield items
        case "getResponse":
            yield [*await tasks.poll(_task_uuid(task), client)]
        case "getTaskDetails":
            yield [await tasks.details(_task_uuid(task), client)]
        case "ping":
            yield [{"taskType": "ping", "pong": True} | _echo_uuid(task)]
        case "imageUpload":
            yield [await _store_upload(tasks, task, "image", client)]
        case "mediaStorage":
            yield [await _store_upload(tasks, task, "media", client)]
        case "modelSearch":
            yield [_search(tasks, state.settings.api, task)]
        case "accountManagement":
            yield [_account(task)]
        case "authentication":  # the transports take those that stand where they belong
            raise TaskError(
                "unsupportedAuthentication",
                "An authentication must be the first task of a request; this one was not used.",
                "taskType",
            )
        case _:
            assert_never(task_type)


def _checked(body: object) -> tuple[dict[str, Any], TaskType]:
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
    return body, cast(TaskType, task_type)


async def _generate(
    tasks: TaskService, task: dict[str, Any], caller: Caller
) -> AsyncIterator[list[Item]]:
    parameters = parse_image_inference(task, tasks.checkpoint.default_steps)
    task_uuid = await tasks.admit(parameters, caller.client)
    if parameters.is_async:
        # Nothing more: a client would take an imageUUID here for the finished image.
        yield [{"taskType": "imageInference", "taskUUID": task_uuid}]
        return
    try:
        async for item in tasks.follow(task_uuid, caller.client):
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
    tasks: TaskService, task: dict[str, Any], parameter: Literal["image", "media"], client: Client
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
        f"{parameter}UUID": image_uuid,
        f"{parameter}URL": f"{client.base_url}/images/{name}",
    }


def _search(tasks: TaskService, api: ApiSettings, task: dict[str, Any]) -> dict[str, Any]:
    sizes = tasks.checkpoint.sizes
    square = next(size for size in sizes if size.width_px == size.height_px)
    default = next((s for s in sizes if str(s) == api.default_size), square)
    model = {
        "air": api.model,
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
