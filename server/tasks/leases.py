"""Leases on tasks: servers that share a task store take over tasks whose holder died.

A server holds a lease on the tasks that it accepted and renews it in good time. When the lease of a
dead server ends, the first server that claims a task generates it again from its seeds, so it does
not matter how far the other one got. Clocks may differ by less than a lease.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping

from server.runware.errors import TaskError
from server.settings import TaskSettings
from server.tasks.store import TaskStore
from server.tasks.tables import StoredTask

log = logging.getLogger(__name__)

# A server that runs as many tasks claims none.
MAX_CLAIMED = 8
RENEWALS_A_LEASE = 3
CANCELS_EVERY_S = 1.0


class Leases:
    """The leases of this server. Without sharing it holds all tasks, for ever."""

    def __init__(self, settings: TaskSettings, store: TaskStore) -> None:
        self._store = store
        self._lease_s = settings.lease_s
        self.is_shared = settings.is_shared
        self.holder = str(uuid.uuid4())

    @property
    def held_until(self) -> float | None:
        """When the lease of a task that is accepted now ends; None for never."""
        return time.time() + self._lease_s if self.is_shared else None

    async def take_over(self) -> list[StoredTask]:
        """Return the tasks that an earlier process of this server did not finish."""
        return [] if self.is_shared else await self._store.list_running()

    async def keep(
        self,
        list_progress: Callable[[], Mapping[str, int]],
        start: Callable[[StoredTask], None],
        stop: asyncio.Event,
    ) -> None:
        """Renew the leases of running tasks, and start tasks without one, until stopped.

        `list_progress` returns the tasks that this server runs, and their progress in percent.
        """
        while self.is_shared and not stop.is_set():
            with contextlib.suppress(TaskError):  # the store logs its errors
                running = list_progress()
                await self._store.renew(self.holder, time.time() + self._lease_s, running)
                for stored in await self._claim(MAX_CLAIMED - len(running)):
                    # It runs here already if this server was held up for longer than a lease.
                    if stored.row.task_uuid not in list_progress():
                        log.warning("task %s was left by another server", stored.row.task_uuid)
                        start(stored)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._lease_s / RENEWALS_A_LEASE):
                    await stop.wait()

    async def watch_cancels(
        self, cancel: Callable[[str], Awaitable[None]], stop: asyncio.Event
    ) -> None:
        """Cancel tasks that run here and were cancelled on another server, until stopped."""
        while self.is_shared and not stop.is_set():
            with contextlib.suppress(TaskError):
                for task_uuid in await self._store.list_cancelled(self.holder):
                    await cancel(task_uuid)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CANCELS_EVERY_S):
                    await stop.wait()

    async def give_up(self) -> None:
        """End the leases, so that others take over unfinished tasks at once."""
        if self.is_shared:
            with contextlib.suppress(TaskError):
                await self._store.renew(self.holder, 0.0, {})

    async def _claim(self, limit: int) -> list[StoredTask]:
        if limit <= 0:
            return []
        return await self._store.claim(self.holder, time.time() + self._lease_s, limit)
