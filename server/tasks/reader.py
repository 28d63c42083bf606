"""The task reader: what has become of accepted tasks, as polls, details and events show it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from server.runware.envelope import Envelope, Item, ResultItem, to_error_object
from server.runware.errors import TaskError
from server.settings import Settings
from server.tasks.accepted import AcceptedTask
from server.tasks.control import TaskControl
from server.tasks.results import (
    Poll,
    load_result_item,
    processing_items,
    stored_failure,
    with_diagnostics,
)
from server.tasks.runner import RunnerServices
from server.tasks.tables import FAILED, RUNNING, ImageRow, StoredTask

ADMISSION_LOOK_S = 0.01  # between two looks at a task that is reserved, and not yet stored


@dataclass(frozen=True, slots=True)
class Client:
    """The owner of a task, and the base of the image URLs in its results."""

    owner: str
    base_url: str
    has_diagnostics: bool = False


class TaskReader:
    """Looks up tasks, for every transport. A task is known to the owner who sent it alone."""

    def __init__(
        self,
        settings: Settings,
        services: RunnerServices,
        control: TaskControl,
        default_steps: int | None,
    ) -> None:
        self._settings = settings
        self._services = services
        self._control = control
        self._default_steps = default_steps

    async def find(self, task_uuid: str, client: Client) -> StoredTask:
        """Return a task of this client; one that is being stored just now is waited for.

        Raises:
            TaskError: the task is not known.
        """
        key = task_uuid.lower()
        stored = await self._services.store.find(key)
        while stored is None and self._is_being_admitted(key, client):
            await asyncio.sleep(ADMISSION_LOOK_S)
            stored = await self._services.store.find(key)
        if stored is None or stored.row.owner != client.owner:
            raise TaskError(
                "taskFailedOrNotFound", f"There is no task '{task_uuid[:80]}'.", "taskUUID"
            )
        return stored

    def _is_being_admitted(self, task_uuid: str, client: Client) -> bool:
        running = self._control.running.get(task_uuid)
        return running is not None and running.row.owner == client.owner

    async def poll(self, task_uuid: str, client: Client) -> Poll:
        """Return what has become of a task: its images, all `processing` or those finished.

        Raises:
            TaskError: the task is not known, or its images have expired.
        """
        stored = await self.find(task_uuid, client)
        row = stored.row
        if row.status == RUNNING:
            progress, texts = row.progress or 0, dict[int, str]()
            if (running := self._control.running.get(row.task_uuid)) is not None:
                progress, texts = running.progress, running.texts
            waiting = processing_items(row, progress, texts if client.has_diagnostics else {})
            return Poll([{**item, "taskUUID": task_uuid} for item in waiting])
        failure = stored_failure(row) if row.status == FAILED else None
        items: list[Item] = []
        try:
            task = AcceptedTask.from_row(row, self._default_steps)
            for image in stored.images:
                items.append({**await self._item(task, image, client), "taskUUID": task_uuid})
        except TaskError:
            if failure is None:
                raise
        return Poll(items, failure)

    async def details(self, task_uuid: str, client: Client) -> dict[str, Any]:
        """Return a task as it was sent, with its present response.

        Raises:
            TaskError: the task is not known.
        """
        stored = await self.find(task_uuid, client)
        response: Envelope = {}
        try:
            polled = await self.poll(task_uuid, client)
            items, failure = polled.items, polled.failure
        except TaskError as e:
            items, failure = [], e
        if items or failure is None:
            response["data"] = items
        if failure is not None:
            response["errors"] = [to_error_object(failure, stored.row.request)]
        return {
            "taskType": "getTaskDetails",
            "taskUUID": task_uuid,
            "request": [await self._services.inputs.restore(stored.row)],
            "response": response,
        }

    async def events(
        self, stored: StoredTask, client: Client, last_id: str, *, with_previews: bool
    ) -> AsyncIterator[tuple[str, str, dict[str, Any]]]:
        """Yield id, kind and values of each event of a task after `last_id`, to its end.

        Raises:
            TaskError: the task is not known.
        """
        task = AcceptedTask.from_row(stored.row, self._default_steps)
        async for streamed in self._control.follow(stored, last_id, with_previews=with_previews):
            event = streamed.event
            values = dict(event.values)
            if event.kind in ("queued", "started", "step"):
                seconds = self._control.seconds_left(stored.row.task_uuid)
                values["estimatedSeconds"] = None if seconds is None else round(seconds, 1)
            elif event.row is not None:
                values = dict(await self._item(task, event.row, client))
            yield streamed.id, event.kind, values

    async def _item(self, task: AcceptedTask, image: ImageRow, client: Client) -> ResultItem:
        item = await load_result_item(task, image, self._services.images, self._settings.price)
        item["status"] = "success"
        return with_diagnostics(item, image, client.has_diagnostics)

    async def generated_size(self, task_uuid: str, client: Client) -> str | None:
        """Return WIDTHxHEIGHT of a task's first finished image."""
        for image in (await self.find(task_uuid, client)).images:
            return f"{image.width}x{image.height}"
        return None
