"""The sweeper: deletes images whose time is over, and tasks that ended long ago."""

import asyncio
import contextlib
import time

from server.delivery.images import ImageStore
from server.runware.errors import TaskError
from server.settings import TaskSettings
from server.tasks.input_images import InputImages
from server.tasks.store import TaskStore


class Sweeper:
    """Looks through the stores of a server every few seconds."""

    def __init__(
        self, settings: TaskSettings, store: TaskStore, images: ImageStore, inputs: InputImages
    ) -> None:
        self._settings = settings
        self._store = store
        self._images = images
        self._inputs = inputs

    async def run(self, stopping: asyncio.Event) -> None:
        """Delete what has expired, until stopped."""
        while not stopping.is_set():
            with contextlib.suppress(TaskError):  # again next time; the stores log their errors
                await self._sweep()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.sweep_every_s):
                    await stopping.wait()

    async def _sweep(self) -> None:
        now = time.time()
        expired = await self._store.list_expired_images(now)
        forgotten = await self._store.purge(self._settings.retention_s)
        await self._images.delete([*expired, *forgotten])
        if expired:
            await self._store.note_deleted_images(now)
        await self._inputs.sweep()
