"""Control of accepted tasks: cancelling one, and following its events, wherever it runs."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from server.engine.protocol import Engine
from server.tasks.events import EventLog, TaskEvent, is_cancel
from server.tasks.results import stored_failure
from server.tasks.runner import TaskRunner
from server.tasks.running import RunningTasks
from server.tasks.store import TaskStore
from server.tasks.tables import FAILED, RUNNING, StoredTask

CANCEL_WAIT_S = 10.0  # a cancel is answered by then, even if the task has not ended
LOOK_EVERY_S = 0.2  # at a task that another server generates

EndStatus = Literal["success", "failed", "cancelled", "cancelling"]


@dataclass(frozen=True, slots=True)
class StreamedEvent:
    """An event under the id by which a client continues after it."""

    id: str
    event: TaskEvent


class TaskControl:
    """Cancels and watches tasks of one store."""

    def __init__(self, store: TaskStore, engine: Engine, runner: TaskRunner) -> None:
        self._store = store
        self._engine = engine
        self._runner = runner

    @property
    def running(self) -> RunningTasks:
        """The tasks that run here."""
        return self._runner.running

    async def cancel(self, stored: StoredTask) -> EndStatus:
        """Stop a task after its present step; return how it ended.

        The wish is stored first: whichever server generates the task, now or after a crash, ends
        it. Cancelling twice, or a task that has ended, changes nothing.
        """
        task_uuid = stored.row.task_uuid
        if stored.row.status == RUNNING:
            await self._store.request_cancel(task_uuid)
            await self._runner.cancel(task_uuid)
            give_up_at = time.monotonic() + CANCEL_WAIT_S
            while stored.row.status == RUNNING and time.monotonic() < give_up_at:
                await self._wait_for_end(task_uuid)
                stored = await self._store.find(task_uuid) or stored
        return end_status(stored)

    async def follow(
        self, stored: StoredTask, last_id: str, *, with_previews: bool
    ) -> AsyncIterator[StreamedEvent]:
        """Yield the events of a task after the one with this id, to its end."""
        task_uuid = stored.row.task_uuid
        log = self.running.log_of(task_uuid)
        if log is None:  # it ended long ago, or another server generates it
            async for streamed in self._follow_store(stored, last_id):
                yield streamed
            return
        if with_previews:
            await self._engine.show_previews(task_uuid)
        async for event in log.follow(last_id):
            if event.kind != "preview" or with_previews:
                yield StreamedEvent(log.id_of(event), event)

    def seconds_left(self, task_uuid: str) -> float | None:
        """Return the seconds until a task will have ended, None if that cannot be estimated."""
        return self.running.seconds_left(task_uuid)

    async def _wait_for_end(self, task_uuid: str) -> None:
        running = self.running.get(task_uuid)
        if running is None:
            await asyncio.sleep(LOOK_EVERY_S)
            return
        try:
            async with asyncio.timeout(CANCEL_WAIT_S):
                async for _ in running.log.follow():
                    pass
        except TimeoutError:
            return

    async def _follow_store(self, stored: StoredTask, last_id: str) -> AsyncIterator[StreamedEvent]:
        """Yield what the store shows: progress in percent, then images and the end."""
        progress: int | None = None
        while stored.row.status == RUNNING:
            if stored.row.progress != progress:
                progress = stored.row.progress
                yield StreamedEvent("", TaskEvent(0, "progress", {"progress": progress or 0}))
            await asyncio.sleep(LOOK_EVERY_S)
            if self.running.log_of(stored.row.task_uuid) is not None:
                async for streamed in self.follow(stored, last_id, with_previews=False):
                    yield streamed
                return
            stored = await self._store.find(stored.row.task_uuid) or stored
        log = EventLog(run="stored")
        for image in stored.images:
            log.add("image", {}, image)
        failure = stored_failure(stored.row) if stored.row.status == FAILED else None
        log.end(stored.row.request, failure)
        async for event in log.follow(last_id):
            yield StreamedEvent(log.id_of(event), event)


def end_status(stored: StoredTask) -> EndStatus:
    """Return how a task ended, or that it is about to."""
    if stored.row.status == RUNNING:
        return "cancelling"
    if stored.row.status != FAILED:
        return "success"
    return "cancelled" if is_cancel(stored.row.error) else "failed"
