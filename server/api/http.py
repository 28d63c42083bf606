"""The HTTP endpoints: one function each, a few lines each."""

import asyncio
from typing import Literal, NotRequired

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from server.api.disconnect import while_connected
from server.api.dispatch import Caller, run_task, server_timing
from server.api.frames import BaseUrl, IsDryRun, WantsDiagnostics, bearer_key, parse_tasks
from server.api.openapi import TASK_EXAMPLE, answers, flag, json_body
from server.api.private import key_needed, may_see
from server.api.scrape import refresh_gauges
from server.api.state import AppState, State
from server.runware.envelope import (
    Envelope,
    ErrorObject,
    Item,
    error_envelope,
    http_status,
    is_polled,
    retry_after_s,
    to_error_object,
)
from server.runware.errors import TaskError
from server.tasks.reader import Client

router = APIRouter()


class Health(TypedDict):
    """The server lives."""

    status: Literal["ok"]


class Readiness(TypedDict):
    """Whether images can be generated, and by what or why not.

    `maxInputImages` is how many images a task may bring, 0 if none. `vocabulary` is there if the
    checkpoint draws only some things: its words by kind.
    """

    ready: bool
    worker: str
    maxInputImages: NotRequired[int]
    vocabulary: NotRequired[dict[str, list[str]]]


_TASKS = json_body("TaskRequest", [TASK_EXAMPLE])
_TASKS["parameters"] = [
    flag("header", "X-Runware-Dry-Run", "Check and price the tasks; generate nothing."),
    flag("query", "dryRun", "The same as the header."),
    flag("header", "X-Diagnostics", "Return how images were generated, as `diagnostics`."),
    flag("query", "diagnostics", "The same as the header."),
]
_ANSWERS = answers("Answer", "Failure", 400, 401, 404, 413, 429, 500, 503)


@router.post("/v1", operation_id="runTasks", openapi_extra=_TASKS, responses=_ANSWERS)
@router.post("/v1/", include_in_schema=False)
async def run_tasks(
    request: Request,
    state: State,
    base_url: BaseUrl,
    has_diagnostics: WantsDiagnostics,
    is_dry_run: IsDryRun,
) -> JSONResponse:
    """Run an array of tasks and answer when all are finished; errors stay with their task."""
    try:
        given = request.headers.get("authorization")
        bodies, key = _take_key(parse_tasks(await request.body()), given)
        client = Client(state.keys.check(key), base_url, has_diagnostics)
    except TaskError as e:
        state.count_error(e)
        return failure([to_error_object(e)])
    caller = Caller(client, repeats_failures=True, is_dry_run=is_dry_run)
    running = _run_all(state, bodies, caller)
    if state.settings.server.cancel_on_disconnect == "always":
        outcomes = await while_connected(request, running)
    else:
        outcomes = await running
    data = [item for items, _ in outcomes for item in items]
    errors = [error for _, error in outcomes if error is not None]
    if errors and not data and not any(map(is_polled, errors)):
        return failure(errors)
    envelope: Envelope = {"data": data}
    if errors:
        envelope["errors"] = errors
    return JSONResponse(envelope, headers=server_timing(caller.seconds))


@router.get("/health", operation_id="getHealth")
async def health() -> Health:
    """Return whether the server lives."""
    return {"status": "ok"}


@router.get(
    "/ready",
    operation_id="getReadiness",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "Not ready."}},
)
async def ready(request: Request, state: State) -> JSONResponse:
    """Return whether images can be generated, and with what; 503 if not."""
    status = state.tasks.status
    body: Readiness = {"ready": status.is_ready, "worker": ""}
    if not may_see("ready", request, state):
        return JSONResponse(body, 200 if status.is_ready else 503)
    body["worker"] = status.description
    body["maxInputImages"] = state.tasks.max_input_images
    if (vocabulary := state.tasks.checkpoint.vocabulary) is not None:
        body["vocabulary"] = vocabulary.words()
    return JSONResponse(body, 200 if status.is_ready else 503)


@router.get("/metrics", include_in_schema=False, dependencies=[Depends(key_needed("metrics"))])
async def metrics(state: State) -> Response:
    """Return counters and timings for Prometheus."""
    await refresh_gauges(state)
    content = state.metrics.render()
    return Response(content, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _run_all(
    state: AppState, bodies: list[object], caller: Caller
) -> list[tuple[list[Item], ErrorObject | None]]:
    return await asyncio.gather(*(_run_one(state, body, caller) for body in bodies))


async def _run_one(
    state: AppState, body: object, caller: Caller
) -> tuple[list[Item], ErrorObject | None]:
    """Return a task's items, and its error object if it has one."""
    items: list[Item] = []
    try:
        async for batch in run_task(state, body, caller):
            items += batch
    except TaskError as e:
        state.count_error(e)
        return items, to_error_object(e, body)
    return items, None


def _take_key(tasks: list[object], header: str | None) -> tuple[list[object], str | None]:
    """Return the tasks without a first authentication, and the key that was given."""
    key = bearer_key(header)
    first = tasks[0]
    if isinstance(first, dict) and first.get("taskType") == "authentication":
        given = first.get("apiKey")
        return tasks[1:], given if isinstance(given, str) else key
    return tasks, key


def failure(errors: list[ErrorObject]) -> JSONResponse:
    """Return the response to a request whose only outcome is errors."""
    status = http_status(errors[0]["code"])
    headers = {401: {"WWW-Authenticate": "Bearer"}}.get(status, {})
    if status in (429, 503):
        headers = {"Retry-After": str(retry_after_s(errors[0]))}
    return JSONResponse(error_envelope(errors), status, headers)
