"""Application state: one object, made by `create_app`, and its dependency for endpoints.

Dependencies are coroutines throughout: FastAPI runs plain functions in threads, which costs a
request more than everything that they do.
"""

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends
from starlette.requests import HTTPConnection

from server.api.sessions import Sessions
from server.background import Background
from server.delivery.images import ImageStore
from server.metrics import Metrics
from server.runware.errors import TaskError
from server.settings import Settings
from server.tasks.keys import Keys
from server.tasks.service import TaskService
from server.tasks.store import TaskStore


@dataclass(frozen=True, kw_only=True, slots=True)
class AppState:
    """The parts of a server that requests use."""

    settings: Settings
    keys: Keys
    tasks: TaskService
    store: TaskStore
    images: ImageStore
    metrics: Metrics
    sessions: Sessions
    background: Background

    def count_error(self, error: TaskError) -> None:
        """Count an error that a client is answered, once: not each poll of a failed task."""
        if error.details.get("status") != "error":
            self.metrics.errors.labels(error.code).inc()


def state_of(connection: HTTPConnection) -> AppState:
    """Return the state of the application that serves a request or a socket."""
    return cast(AppState, connection.app.state.hyimage)


async def app_state(connection: HTTPConnection) -> AppState:
    """Return the same to an endpoint; a function that is not async would run in a thread."""
    return state_of(connection)


State = Annotated[AppState, Depends(app_state)]
