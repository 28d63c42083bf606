"""Endpoints of one accepted task: its events while it is generated, and its cancelling.

Extensions of this server; the hosted API has neither.
"""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from server.api.dispatch import cancel_task
from server.api.frames import BaseUrl, WantsDiagnostics, bearer_key
from server.api.http import failure
from server.api.openapi import KEY, answers, failures
from server.api.state import State
from server.runware.envelope import to_error_object
from server.runware.errors import TaskError
from server.tasks.reader import Client
from server.tasks.tables import StoredTask

router = APIRouter()


async def calling_client(
    request: Request, state: State, base_url: BaseUrl, has_diagnostics: WantsDiagnostics
) -> Client:
    """Return the client of a request by its key.

    Raises:
        TaskError: there is no key, or it is not valid.
    """
    owner = state.keys.check(bearer_key(request.headers.get("authorization")))
    return Client(owner, base_url, has_diagnostics)


Caller = Annotated[Client, Depends(calling_client)]


async def known_task(task_uuid: str, state: State, client: Caller) -> StoredTask:
    """Return the task that a path names.

    Raises:
        TaskError: the task is not known.
    """
    return await state.tasks.reader.find(task_uuid, client)


@router.get(
    "/v1/tasks/{task_uuid}/events",
    operation_id="followTask",
    openapi_extra=KEY,
    response_class=EventSourceResponse,
    responses=failures("Failure", 401, 404),
)
async def follow_events(
    state: State,
    client: Caller,
    stored: Annotated[StoredTask, Depends(known_task)],
    previews: Annotated[bool, Query(description="Also send small images of each step.")] = False,
    last_event_id: Annotated[str, Header(description="Continue after this event.")] = "",
) -> AsyncIterator[ServerSentEvent]:
    """Send the events of a task as they come, to its end: queued, started, step, image, done.

    The end is `done`, `failed` or `cancelled`. Comments keep the connection open meanwhile.
    """
    events = state.tasks.reader.events(stored, client, last_event_id, with_previews=previews)
    async for event_id, kind, values in events:
        yield ServerSentEvent(id=event_id or None, event=kind, data=values)


@router.delete(
    "/v1/tasks/{task_uuid}",
    operation_id="cancelTask",
    openapi_extra=KEY,
    responses=answers("Answer", "Failure", 401, 404, 503),
)
async def delete_task(task_uuid: str, state: State, client: Caller) -> JSONResponse:
    """Cancel a task: it stops after its present step. One that has ended stays as it is."""
    try:
        item = await cancel_task(state, task_uuid, client)
    except TaskError as e:
        state.count_error(e)
        return failure([to_error_object(e)])
    return JSONResponse({"data": [item]})
