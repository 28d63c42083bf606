"""The events of a running task: a log that any number of clients follow, each at its own pace."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal

from server.runware.envelope import ErrorObject, to_error_object
from server.runware.errors import TaskError
from server.tasks.tables import ImageRow

Kind = Literal[
    "queued", "started", "progress", "text", "step", "preview", "image", "done", "failed",
    "cancelled",
]  # fmt: skip
ENDS: tuple[Kind, ...] = ("done", "failed", "cancelled")
# Of these only the newest, for each image, is worth sending to a client that comes later.
_REPLACED: tuple[Kind, ...] = ("queued", "text", "preview")


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """One event. `row` of an `image` event is the image that was finished."""

    number: int
    kind: Kind
    values: dict[str, Any]
    row: ImageRow | None = None


@dataclass(slots=True)
class EventLog:
    """The events of one run of a task, numbered from 1.

    Ids name the run, too: after a restart of the server a client that continues gets all events
    of the new run, and none twice within a run.
    """

    run: str = field(default_factory=lambda: secrets.token_hex(4))
    has_ended: bool = False
    _number: int = 0
    _events: dict[object, TaskEvent] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, kind: Kind, values: dict[str, Any], row: ImageRow | None = None) -> None:
        """Add an event, and wake those who follow."""
        self._number += 1
        key = (kind, values.get("image")) if kind in _REPLACED else self._number
        self._events.pop(key, None)
        self._events[key] = TaskEvent(self._number, kind, values, row)
        self.has_ended |= kind in ENDS
        self._wake()

    def end(self, task: dict[str, Any], failure: TaskError | None) -> None:
        """Add the last event of a task; `task` is the task as it was sent."""
        if failure is None:
            self.add("done", {"taskUUID": task["taskUUID"]})
            return
        error = to_error_object(failure, task)
        self.add("cancelled" if is_cancel(error) else "failed", {"error": error})

    def break_off(self) -> None:
        """End without a last event: the server stops, and the task goes on with a later start."""
        self.has_ended = True
        self._wake()

    def id_of(self, event: TaskEvent) -> str:
        """Return the id under which clients get an event."""
        return f"{self.run}-{event.number}"

    async def follow(self, last_id: str = "") -> AsyncIterator[TaskEvent]:
        """Yield the events after the one with this id, as they come, to the end of the task."""
        run, _, number = last_id.rpartition("-")
        last = int(number) if run == self.run and number.isdecimal() else 0
        while True:
            changed = self._changed
            for event in [e for e in self._events.values() if e.number > last]:
                last = event.number
                yield event
            if self.has_ended and last >= self._number:
                return
            if changed is self._changed:
                await changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def is_cancel(error: ErrorObject | None) -> bool:
    """Return whether an error says that its task was cancelled."""
    return error is not None and error.get("code") == "taskCancelled"
