"""The task store: tasks, images and webhook calls, committed before anybody is answered.

SQLite by default, or any database that SQLAlchemy reaches by URL. Seeds are stored as text: the
API's largest seed lies beyond a signed 64-bit integer.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from typing import Literal, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from server.metrics import Metrics
from server.runware.envelope import ErrorObject
from server.runware.errors import TaskError
from server.settings import Durability, SettingsError
from server.tasks.database import open_database
from server.tasks.statements import end, find, forget, insert_new
from server.tasks.tables import (
    FAILED,
    FOREVER,
    IMAGES,
    RUNNING,
    SUCCESS,
    TASKS,
    UPLOAD,
    WEBHOOKS,
    DueWebhook,
    ImageRow,
    StoredTask,
    TaskRow,
    Webhook,
)
from server.tasks.usage import Charge, DailyUsage, Usage, add_usage, read_usage
from server.tasks.writer import Writer

log = logging.getLogger(__name__)

Result = TypeVar("Result")

NUM_READERS = 4


class DuplicateTaskError(ValueError):
    """A task with this UUID is stored already."""


class TaskStore:
    """Writes go through one thread and are committed in groups; reads run in a pool of threads.

    Every call raises a TaskError if the database does not work.
    """

    def __init__(
        self, url: str, durability: Durability = "power", metrics: Metrics | None = None
    ) -> None:
        """Connect to the database and bring its schema up to date.

        Raises:
            SettingsError: the URL is not understood, or the database cannot be used, or its schema
                is newer than this version.
        """
        try:
            self._engine = open_database(sa.make_url(url), durability)
        except (SQLAlchemyError, ImportError, OSError) as e:
            shown = url.partition("://")[0]  # the rest may hold a password
            reason = str(e).partition("\n")[0]
            raise SettingsError(
                f"tasks.database_url ({shown}://...) cannot be used: {reason}; "
                "write sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE"
            ) from None
        self._metrics = metrics or Metrics()
        self._writer = Writer(self._engine)
        # Not asyncio's default pool, whose threads may all wait for S3 or check contents.
        self._readers = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="store-read")

    async def open(self) -> None:
        """Start writing."""
        self._writer.start()

    async def close(self) -> None:
        """Finish the writes that are queued."""
        await self._writer.stop()
        self._readers.shutdown(wait=False)
        await asyncio.to_thread(self._engine.dispose)

    # --- tasks ---

    async def add(self, row: TaskRow) -> None:
        """Store a task.

        Raises:
            DuplicateTaskError: its UUID is taken.
        """

        def write(connection: Connection) -> bool:
            is_new = insert_new(connection, TASKS, asdict(row))
            if is_new:
                add_usage(connection, row.owner, Usage(num_tasks=1))
            return is_new

        if not await self.write(write):
            raise DuplicateTaskError(row.task_uuid)

    async def find(self, task_uuid: str) -> StoredTask | None:
        """Return a task with its finished images in order."""
        return await self.read(lambda connection: find(connection, task_uuid))

    async def list_running(self) -> list[StoredTask]:
        """Return the accepted tasks that have not ended, oldest first."""

        def read(connection: Connection) -> list[StoredTask]:
            running = sa.select(TASKS.c.task_uuid).where(TASKS.c.status == RUNNING)
            uuids = connection.scalars(running.order_by(TASKS.c.created_at)).all()
            found = [find(connection, task_uuid) for task_uuid in uuids]
            return [task for task in found if task is not None]

        return await self.read(read)

    async def renew(self, holder: str, until: float, progress: Mapping[str, int]) -> None:
        """Extend the leases of a server's running tasks; store their progress."""
        held = sa.and_(TASKS.c.holder == holder, TASKS.c.status == RUNNING)
        hold = sa.update(TASKS).where(held).values(held_until=until)
        note = sa.update(TASKS).where(held, TASKS.c.task_uuid == sa.bindparam("uuid"))
        values = [{"uuid": uuid, "percent": percent} for uuid, percent in progress.items()]

        def write(connection: Connection) -> None:
            connection.execute(hold)
            if values:
                connection.execute(note.values(progress=sa.bindparam("percent")), values)

        await self.write(write)

    async def claim(self, holder: str, until: float, limit: int) -> list[StoredTask]:
        """Give a server some running tasks whose lease has ended, the oldest first.

        If several servers claim at once, each task goes to one of them.
        """
        held_until = sa.func.coalesce(TASKS.c.held_until, 0.0)
        free = sa.and_(TASKS.c.status == RUNNING, held_until < time.time())

        def write(connection: Connection) -> list[StoredTask]:
            oldest = sa.select(TASKS.c.task_uuid).where(free).order_by(TASKS.c.created_at)
            uuids = connection.scalars(oldest.limit(limit)).all()
            take = sa.update(TASKS).values(holder=holder, held_until=until).where(free)
            taken = [
                u for u in uuids if connection.execute(take.where(TASKS.c.task_uuid == u)).rowcount
            ]
            return [stored for u in taken if (stored := find(connection, u)) is not None]

        return await self.write(write)

    async def request_cancel(self, task_uuid: str) -> None:
        """Note that a running task is wanted no more."""
        running = sa.and_(TASKS.c.task_uuid == task_uuid, TASKS.c.status == RUNNING)
        note = sa.update(TASKS).where(running).values(is_cancelled=True)
        await self.write(lambda connection: connection.execute(note) and None)

    async def list_cancelled(self, holder: str) -> list[str]:
        """Return the running tasks of a server that are wanted no more."""
        held = sa.and_(TASKS.c.holder == holder, TASKS.c.status == RUNNING)
        wanted = sa.select(TASKS.c.task_uuid).where(held, TASKS.c.is_cancelled.is_(True))
        return await self.read(lambda connection: list(connection.scalars(wanted)))

    async def add_image(
        self, image: ImageRow, webhook: Webhook | None, charge: Charge | None = None
    ) -> None:
        """Store a finished image and its webhook call, and charge its task's owner.

        An image that is stored already, from before a crash, stays as it is.
        """

        def write(connection: Connection) -> None:
            if not insert_new(connection, IMAGES, asdict(image)):
                return
            if webhook is not None:
                connection.execute(sa.insert(WEBHOOKS), asdict(webhook))
            if charge is not None:
                add_usage(connection, charge.owner, Usage(num_images=1, cost=charge.cost))

        await self.write(write)

    async def usage(self, owner: str) -> DailyUsage:
        """Return what an owner used, by day."""
        return await self.read(lambda connection: read_usage(connection, owner))

    async def image_expiry(self, name: str) -> float | None:
        """Return when an image expires, 0 if it is deleted, or None if it is not known."""
        wanted = sa.select(IMAGES.c.expires_at)
        wanted = wanted.where(IMAGES.c.image_uuid == name[:36], IMAGES.c.name == name)
        found = await self.read(lambda connection: connection.scalar(wanted))
        return 0.0 if found == FOREVER else found

    async def succeed(self, task_uuid: str) -> None:
        """End a running task whose images are all stored."""
        await self.write(lambda connection: end(connection, task_uuid, SUCCESS, None))

    async def fail(self, row: TaskRow, error: ErrorObject, webhook: Webhook | None = None) -> None:
        """End a running task with an error, unless another server has taken it over."""
        is_held = TASKS.c.holder.is_not_distinct_from(row.holder)

        def write(connection: Connection) -> None:
            if end(connection, row.task_uuid, FAILED, error, is_held) and webhook is not None:
                connection.execute(sa.insert(WEBHOOKS), asdict(webhook))

        await self.write(write)

    async def release(self, task_uuid: str) -> None:
        """Delete a task, so that its UUID can be used again."""
        await self.write(lambda c: forget(c, TASKS.c.task_uuid == task_uuid))

    async def purge(self, retention_s: float) -> list[str]:
        """Delete tasks that ended long ago; return the names of their images."""
        before = time.time() - retention_s
        old = sa.and_(TASKS.c.status != RUNNING, TASKS.c.created_at <= before)
        return await self.write(lambda connection: forget(connection, old))

    async def list_expired_images(self, now: float) -> list[str]:
        """Return the names of expired images whose bytes may still be stored."""
        expired = sa.select(IMAGES.c.name).where(IMAGES.c.expires_at <= now)
        return await self.read(lambda connection: list(connection.scalars(expired)))

    async def note_deleted_images(self, now: float) -> None:
        """Note that the bytes of all images expired by `now` are deleted."""
        expired = IMAGES.c.expires_at <= now

        def write(connection: Connection) -> None:
            connection.execute(sa.delete(IMAGES).where(expired, IMAGES.c.task_uuid == UPLOAD))
            connection.execute(sa.update(IMAGES).where(expired).values(expires_at=FOREVER))

        await self.write(write)

    # --- webhooks ---

    async def list_due_webhooks(self, now: float, limit: int) -> list[DueWebhook]:
        """Return calls that are due, the longest waiting first."""
        due = sa.select(WEBHOOKS).where(WEBHOOKS.c.next_try_at <= now)
        due = due.order_by(WEBHOOKS.c.next_try_at).limit(limit)
        return await self.read(
            lambda connection: [DueWebhook(**row) for row in connection.execute(due).mappings()]
        )

    async def claim_webhook(self, due: DueWebhook, until: float) -> bool:
        """Claim a call for a while; return False if another server has claimed it."""
        unchanged = sa.and_(WEBHOOKS.c.id == due.id, WEBHOOKS.c.next_try_at == due.next_try_at)
        change = sa.update(WEBHOOKS).where(unchanged).values(next_try_at=until)
        return await self.write(lambda connection: connection.execute(change).rowcount == 1)

    async def delay_webhook(self, webhook_id: int, num_tries: int, next_try_at: float) -> None:
        """Postpone a call that failed."""
        change = sa.update(WEBHOOKS).where(WEBHOOKS.c.id == webhook_id)
        change = change.values(num_tries=num_tries, next_try_at=next_try_at)
        await self.write(lambda connection: connection.execute(change).rowcount)

    async def drop_webhook(self, webhook_id: int) -> None:
        """Delete a call: it was answered, or it is given up."""
        change = sa.delete(WEBHOOKS).where(WEBHOOKS.c.id == webhook_id)
        await self.write(lambda connection: connection.execute(change).rowcount)

    async def count_webhooks(self) -> int:
        """Return how many calls are not made yet, due or not."""
        count = sa.select(sa.func.count()).select_from(WEBHOOKS)
        return await self.read(lambda connection: connection.scalar(count) or 0)

    async def read(self, operation: Callable[[Connection], Result]) -> Result:
        """Return what an operation reads; it runs in a thread."""

        def read() -> Result:
            with self._engine.connect() as connection:
                return operation(connection)

        with self._measured("read"):
            return await asyncio.get_running_loop().run_in_executor(self._readers, read)

    async def write(self, operation: Callable[[Connection], Result]) -> Result:
        """Return what an operation returns once it is committed, alone or with others."""
        with self._measured("write"):
            return await self._writer.run(operation)

    @contextmanager
    def _measured(self, operation: Literal["read", "write"]) -> Iterator[None]:
        """Time a call; turn the database's own error into one for clients."""
        started = time.monotonic()
        try:
            yield
        except SQLAlchemyError as e:
            self._metrics.store_faults.labels(operation).inc()
            log.error("the task store does not work: %s", str(e).partition("\n")[0])
            message = "The task store cannot be reached; try again later."
            raise TaskError("serviceUnavailable", message) from None
        finally:
            self._metrics.store_seconds.labels(operation).observe(time.monotonic() - started)
