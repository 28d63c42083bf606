"""Dispatch of one task of any type, the same for both transports.

The answer is a stream of lists of items: HTTP puts them all into one response, a WebSocket sends
each list as a frame of its own.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal, assert_never, cast, get_args

from server.api.catalog import account_details, search_models
from server.api.state import AppState
from server.api.uploads import store_upload
from server.runware.envelope import Item, as_task_error, echo_uuid, http_status
from server.runware.errors import TaskError
from server.runware.parameter_reference import json_type
from server.runware.schemas import ImageInference
from server.runware.validation import parse_image_inference
from server.tasks.meter import Seconds
from server.tasks.reader import Client

log = logging.getLogger(__name__)

SingleItemType = Literal[
    "getTaskDetails", "authentication", "ping", "imageUpload", "mediaStorage", "modelSearch",
    "accountManagement", "cancelTask",
]  # fmt: skip
TaskType = Literal["imageInference", "getResponse"] | SingleItemType
TASK_TYPES: tuple[TaskType, ...] = ("imageInference", "getResponse", *get_args(SingleItemType))


@dataclass(frozen=True, slots=True)
class Caller:
    """A client on its transport. `seconds` by stage are those of its tasks that it waited for.

    HTTP clients send a task that failed with a 5xx again under its old UUID; those on a socket
    poll what became of it.
    """

    client: Client
    repeats_failures: bool
    has_long_prompts: bool = False  # the form sets no limit; that of the model holds
    is_dry_run: bool = False  # images are priced, and not generated
    takes_progress: bool = False  # frames beside the results can reach it
    seconds: Seconds = field(default_factory=dict)


async def run_task(state: AppState, body: object, caller: Caller) -> AsyncIterator[list[Item]]:
    """Yield the items that answer one task, as they are finished.

    Raises:
        TaskError: the task was refused, or it failed.
    """
    task, task_type = _checked(body)
    match task_type:
        case "imageInference":
            async for items in _generate(state, task, caller):
                yield items
        case "getResponse":
            polled = await state.tasks.reader.poll(_task_uuid(task), caller.client)
            if polled.items:
                yield polled.items
            if polled.failure is not None:
                raise polled.failure
        case _:
            yield [await _single_item(state, task, task_type, caller.client)]


async def _single_item(
    state: AppState, task: dict[str, Any], task_type: SingleItemType, client: Client
) -> dict[str, Any]:
    """Return the one item of a task that generates nothing."""
    match task_type:
        case "getTaskDetails":
            return await state.tasks.reader.details(_task_uuid(task), client)
        case "cancelTask":
            return await cancel_task(state, _task_uuid(task), client)
        case "ping":
            return {"taskType": "ping", "pong": True} | echo_uuid(task)
        case "imageUpload":
            return await store_upload(state.tasks, task, "image", client)
        case "mediaStorage":
            return await store_upload(state.tasks, task, "media", client)
        case "modelSearch":
            tasks, api = state.tasks, state.settings.api
            return search_models(tasks.checkpoint, tasks.max_input_images, api, task)
        case "accountManagement":
            daily = await state.store.usage(client.owner)
            return account_details(task, state.keys.record(client.owner), daily)
        case "authentication":  # the transports take those that stand where they belong
            raise TaskError(
                "unsupportedAuthentication",
                "An authentication must be the first task of a request; this one was not used.",
                "taskType",
            )
        case _:
            assert_never(task_type)


async def cancel_abandoned(state: AppState, task_uuid: str, client: Client) -> None:
    """Cancel a task whose client is gone.

    A server that stops cancels its handlers, too: their tasks stay in the store for the next start.
    """
    if state.tasks.is_draining:
        return
    log.info("task %s: its client is gone; it is cancelled", task_uuid)
    with contextlib.suppress(TaskError):
        await state.tasks.cancel(task_uuid, client)


def server_timing(seconds: Seconds) -> dict[str, str]:
    """Return the header by which a browser shows what each stage took, in milliseconds.

    Source: W3C Server Timing, section 3.
    """
    if not seconds:
        return {}
    return {"Server-Timing": ", ".join(f"{k};dur={1000 * s:.1f}" for k, s in seconds.items())}


def _checked(body: object) -> tuple[dict[str, Any], TaskType]:
    if not isinstance(body, dict):
        raise TaskError(
            "invalidTask",
            f"A task must be an object, not {json_type(body)}.",
            details={"type": "object"},
        )
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


async def cancel_task(state: AppState, task_uuid: str, client: Client) -> dict[str, Any]:
    """Cancel a task; return the item that says how it ended.

    Raises:
        TaskError: the task is not known.
    """
    status = await state.tasks.cancel(task_uuid, client)
    return {"taskType": "cancelTask", "taskUUID": task_uuid, "status": status}


def stopping_error() -> TaskError:
    """Return the error for a client that waits for a task which a later start will generate."""
    return TaskError("serviceUnavailable", "The server is stopping; poll the task later.")


async def admit_task(
    state: AppState, task: dict[str, Any], caller: Caller
) -> tuple[ImageInference, str]:
    """Check, store and start a task; return its parameters and the UUID that stores it.

    Raises:
        TaskError: the task was refused.
    """
    parameters = parse_task(state, task, caller)
    return parameters, await state.tasks.admit(parameters, task, caller.client)


def parse_task(state: AppState, task: dict[str, Any], caller: Caller) -> ImageInference:
    """Return the checked parameters of a task.

    Raises:
        TaskError: the first fault.
    """
    parameters = parse_image_inference(
        task, state.tasks.checkpoint.default_steps, has_long_prompts=caller.has_long_prompts
    )
    if parameters.reportProgress and not caller.takes_progress:
        raise TaskError(
            "unsupportedParameter",
            "Unsupported use of 'reportProgress' parameter. It works on a WebSocket; over HTTP "
            "follow GET /v1/tasks/{taskUUID}/events.",
            "reportProgress",
        )
    return parameters


async def _generate(
    state: AppState, task: dict[str, Any], caller: Caller
) -> AsyncIterator[list[Item]]:
    if caller.is_dry_run:
        parameters = parse_task(state, task, caller)
        yield [await state.tasks.estimate(parameters, caller.client)]
        return
    parameters, task_uuid = await admit_task(state, task, caller)
    if parameters.is_async:
        # Nothing more: a client would take an imageUUID here for the finished image.
        yield [{"taskType": "imageInference", "taskUUID": parameters.taskUUID}]
    if parameters.is_async and not parameters.reportProgress:
        return
    try:
        if parameters.reportProgress:
            async for item in report_progress(state, parameters, caller.client):
                yield [item]
            return
        async for result in state.tasks.follow(task_uuid, caller.client, caller.seconds):
            yield [result]
    except TaskError as e:
        if caller.repeats_failures and http_status(e.code) >= 500:
            await state.tasks.release(task_uuid)
        raise
    except asyncio.CancelledError:  # the client is gone, and nobody else waits for the task
        state.background.spawn(cancel_abandoned(state, task_uuid, caller.client))
        raise


async def report_progress(
    state: AppState, parameters: ImageInference, client: Client
) -> AsyncIterator[Item]:
    """Yield an item for each event of a task, and its results among them unless they are polled.

    Raises:
        TaskError: the task failed.
    """
    reader = state.tasks.reader
    stored = await reader.find(parameters.taskUUID, client)
    events = reader.events(stored, client, "", with_previews=parameters.hunyuan.previews)
    async for _, kind, values in events:
        if kind == "done":
            return
        if kind in ("failed", "cancelled"):
            raise as_task_error(values["error"])
        if kind == "image":
            if not parameters.is_async:
                yield {name: value for name, value in values.items() if name != "status"}
            continue
        names = {"taskType": "taskProgress", "taskUUID": parameters.taskUUID, "event": kind}
        yield names | values
    raise stopping_error()


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
