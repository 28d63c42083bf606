"""Tasks, their pictures and their pending webhook calls, on disk before anybody is told of them.

SQLite by default, any database that SQLAlchemy reaches by URL. Seeds are stored as text: the API's
largest lies beyond a signed 64-bit integer.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.exc import SQLAlchemyError

from server.errors import TaskError
from server.settings import SettingsError
from server.tasks.writer import Writer

log = logging.getLogger(__name__)

RUNNING, SUCCESS, FAILED = "running", "success", "error"
UPLOAD = "upload"  # stands for the task of a picture that a client sent
FOREVER = 1e18

Result = TypeVar("Result")

_METADATA = sa.MetaData()

_TASKS = sa.Table(
    "tasks",
    _METADATA,
    sa.Column("task_uuid", sa.String(36), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("request", sa.JSON, nullable=False),
    sa.Column("base_url", sa.Text, nullable=False),
    sa.Column("seeds", sa.JSON, nullable=False),
    sa.Column("image_uuids", sa.JSON, nullable=False),
    sa.Column("status", sa.String(8), nullable=False, index=True),
    sa.Column("error", sa.JSON),
    sa.Column("created_at", sa.Float, nullable=False, index=True),
    sa.Column("holder", sa.String(36)),
    sa.Column("held_until", sa.Float),
)
_IMAGES = sa.Table(
    "images",
    _METADATA,
    sa.Column("image_uuid", sa.String(36), primary_key=True),
    sa.Column("task_uuid", sa.String(36), nullable=False, index=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("is_nsfw", sa.Boolean),
    sa.Column("expires_at", sa.Float, nullable=False, index=True),
    sa.Column("diagnostics", sa.JSON),
    sa.Column("width", sa.Integer),
    sa.Column("height", sa.Integer),
)
_WEBHOOKS = sa.Table(
    "webhooks",
    _METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("task_uuid", sa.String(36), nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("num_tries", sa.Integer, nullable=False),
    sa.Column("next_try_at", sa.Float, nullable=False, index=True),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRow:
    """One accepted task."""

    task_uuid: str
    owner: str
    request: dict[str, Any]
    base_url: str
    seeds: list[str]
    image_uuids: list[str]
    status: str
    error: dict[str, Any] | None
    created_at: float
    holder: str | None = None  # the server that draws it, where several share a store
    held_until: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRow:
    """One finished picture; the file lies in the image store under `name`."""

    image_uuid: str
    task_uuid: str
    position: int
    name: str
    is_nsfw: bool | None
    expires_at: float
    diagnostics: dict[str, Any] | None = None
    width: int | None = None
    height: int | None = None

    def told_diagnostics(self, is_told: bool) -> dict[str, Any]:
        """Return the field that a result gets when its client asks how it was drawn."""
        return {"diagnostics": self.diagnostics} if is_told and self.diagnostics else {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Webhook:
    """A call that has to be made."""

    task_uuid: str
    position: int
    url: str
    body: dict[str, Any]
    num_tries: int
    next_try_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class DueWebhook(Webhook):
    """A call that stands in the outbox."""

    id: int


@dataclass(frozen=True, slots=True)
class StoredTask:
    """A task and what has become of it."""

    row: TaskRow
    images: tuple[ImageRow, ...]


class DuplicateTaskError(ValueError):
    """A task with this UUID is remembered already."""


class TaskStore:
    """Writes go through one thread and are committed in groups; reads have threads of their own.

    Every call raises a TaskError if the database does not work.
    """

    def __init__(self, url: str) -> None:
        """Reach the database and create what is missing.

        Raises:
            SettingsError: the URL is not understood, or the database cannot be used.
        """
        try:
            parsed = sa.make_url(url)
            self._engine = sa.create_engine(parsed)
            if parsed.get_backend_name() == "sqlite":
                sa.event.listen(self._engine, "connect", _prepare_sqlite)
                Path(parsed.database or "").parent.mkdir(parents=True, exist_ok=True)
            _METADATA.create_all(self._engine)
            _add_missing_columns(self._engine)
        except (SQLAlchemyError, ImportError, OSError) as e:
            shown = url.partition("://")[0]  # the rest may hold a password
            reason = str(e).partition("\n")[0]
            raise SettingsError(
                f"tasks.database_url ({shown}://...) cannot be used: {reason}; "
                "write sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE"
            ) from None
        self._writer = Writer(self._engine)

    async def open(self) -> None:
        """Start writing."""
        self._writer.start()

    async def close(self) -> None:
        """Finish what is being written."""
        await self._writer.stop()
        await asyncio.to_thread(self._engine.dispose)

    # --- tasks ---

    async def add(self, row: TaskRow) -> None:
        """Remember a task.

        Raises:
            DuplicateTaskError: its UUID is taken.
        """
        if not await self._write(lambda c: _insert_new(c, _TASKS, asdict(row))):
            raise DuplicateTaskError(row.task_uuid)

    async def find(self, task_uuid: str) -> StoredTask | None:
        """Return a task with its finished pictures in order."""
        return await self._read(lambda connection: _find(connection, task_uuid))

    async def list_running(self) -> list[StoredTask]:
        """Return the accepted tasks that have not ended, oldest first."""

        def read(connection: Connection) -> list[StoredTask]:
            running = sa.select(_TASKS.c.task_uuid).where(_TASKS.c.status == RUNNING)
            uuids = connection.scalars(running.order_by(_TASKS.c.created_at)).all()
            found = [_find(connection, task_uuid) for task_uuid in uuids]
            return [task for task in found if task is not None]

        return await self._read(read)

    async def renew(self, holder: str, until: float) -> None:
        """Hold the running tasks of a server until a later time."""
        own = sa.and_(_TASKS.c.holder == holder, _TASKS.c.status == RUNNING)
        change = sa.update(_TASKS).where(own).values(held_until=until)
        await self._write(lambda connection: connection.execute(change).rowcount)

    async def claim(self, holder: str, until: float, limit: int) -> list[StoredTask]:
        """Give a server some running tasks that nobody holds any more, the oldest first.

        Of several servers that ask at once, each task goes to one.
        """
        held_until = sa.func.coalesce(_TASKS.c.held_until, 0.0)
        free = sa.and_(_TASKS.c.status == RUNNING, held_until < time.time())

        def write(connection: Connection) -> list[StoredTask]:
            oldest = sa.select(_TASKS.c.task_uuid).where(free).order_by(_TASKS.c.created_at)
            uuids = connection.scalars(oldest.limit(limit)).all()
            take = sa.update(_TASKS).values(holder=holder, held_until=until).where(free)
            taken = [
                u for u in uuids if connection.execute(take.where(_TASKS.c.task_uuid == u)).rowcount
            ]
            return [stored for u in taken if (stored := _find(connection, u)) is not None]

        return await self._write(write)

    async def add_image(
        self, image: ImageRow, webhook: Webhook | None, *, is_last: bool = False
    ) -> None:
        """Remember a finished picture, the call that announces it, and maybe its task's success.

        A picture that is there already, from before a crash, is left as it is.
        """

        def write(connection: Connection) -> None:
            if _insert_new(connection, _IMAGES, asdict(image)) and webhook is not None:
                connection.execute(sa.insert(_WEBHOOKS), asdict(webhook))
            if is_last:
                _end(connection, image.task_uuid, SUCCESS, None)

        await self._write(write)

    async def fail(
        self, task_uuid: str, error: dict[str, Any], webhook: Webhook | None = None
    ) -> None:
        """End a running task with an error."""

        def write(connection: Connection) -> None:
            if _end(connection, task_uuid, FAILED, error) and webhook is not None:
                connection.execute(sa.insert(_WEBHOOKS), asdict(webhook))

        await self._write(write)

    async def release(self, task_uuid: str) -> None:
        """Forget a task, so that its UUID can be used again."""
        await self._write(lambda c: _forget(c, _TASKS.c.task_uuid == task_uuid))

    async def purge(self, retention_s: float) -> list[str]:
        """Forget tasks that ended long ago; return the names of their pictures."""
        before = time.time() - retention_s
        old = sa.and_(_TASKS.c.status != RUNNING, _TASKS.c.created_at <= before)
        return await self._write(lambda connection: _forget(connection, old))

    async def list_expired_images(self, now: float) -> list[str]:
        """Return the names of pictures whose time is over and whose bytes may still be there."""
        expired = sa.select(_IMAGES.c.name).where(_IMAGES.c.expires_at <= now)
        return await self._read(lambda connection: list(connection.scalars(expired)))

    async def note_deleted_images(self, now: float) -> None:
        """Remember that the bytes of all pictures expired by `now` are gone."""
        expired = _IMAGES.c.expires_at <= now

        def write(connection: Connection) -> None:
            connection.execute(sa.delete(_IMAGES).where(expired, _IMAGES.c.task_uuid == UPLOAD))
            connection.execute(sa.update(_IMAGES).where(expired).values(expires_at=FOREVER))

        await self._write(write)

    # --- webhooks ---

    async def list_due_webhooks(self, now: float, limit: int) -> list[DueWebhook]:
        """Return calls whose time has come, the longest waiting first."""
        due = sa.select(_WEBHOOKS).where(_WEBHOOKS.c.next_try_at <= now)
        due = due.order_by(_WEBHOOKS.c.next_try_at).limit(limit)
        return await self._read(
            lambda connection: [DueWebhook(**row) for row in connection.execute(due).mappings()]
        )

    async def claim_webhook(self, due: DueWebhook, until: float) -> bool:
        """Keep other servers from making a call for a while; return whether none is making it."""
        unchanged = sa.and_(_WEBHOOKS.c.id == due.id, _WEBHOOKS.c.next_try_at == due.next_try_at)
        change = sa.update(_WEBHOOKS).where(unchanged).values(next_try_at=until)
        return await self._write(lambda connection: connection.execute(change).rowcount == 1)

    async def delay_webhook(self, webhook_id: int, num_tries: int, next_try_at: float) -> None:
        """Try a call again later."""
        change = sa.update(_WEBHOOKS).where(_WEBHOOKS.c.id == webhook_id)
        change = change.values(num_tries=num_tries, next_try_at=next_try_at)
        await self._write(lambda connection: connection.execute(change).rowcount)

    async def drop_webhook(self, webhook_id: int) -> None:
        """Forget a call: it was answered, or it is given up."""
        change = sa.delete(_WEBHOOKS).where(_WEBHOOKS.c.id == webhook_id)
        await self._write(lambda connection: connection.execute(change).rowcount)

    async def _read(self, operation: Callable[[Connection], Result]) -> Result:
        def read() -> Result:
            with self._engine.connect() as connection:
                return operation(connection)

        try:
            return await asyncio.to_thread(read)
        except SQLAlchemyError:
            raise _unreachable() from None

    async def _write(self, operation: Callable[[Connection], Result]) -> Result:
        try:
            return await self._writer.run(operation)
        except SQLAlchemyError:
            raise _unreachable() from None


def _add_missing_columns(engine: sa.Engine) -> None:
    """Bring a database of an earlier version up to date; all later columns may be null."""
    inspector = sa.inspect(engine)
    with engine.begin() as connection:
        for table in _METADATA.sorted_tables:
            present = {column["name"] for column in inspector.get_columns(table.name)}
            for column in table.columns:
                if column.name not in present:
                    kind = column.type.compile(engine.dialect)
                    connection.execute(
                        sa.text(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}")
                    )


def _unreachable() -> TaskError:
    """Return the error for a database that does not work; its own words go to the log."""
    log.exception("the task store does not work")
    return TaskError("serviceUnavailable", "The task store cannot be reached; try again later.")


def _find(connection: Connection, task_uuid: str) -> StoredTask | None:
    row = (
        connection.execute(sa.select(_TASKS).where(_TASKS.c.task_uuid == task_uuid))
        .mappings()
        .first()
    )
    if row is None:
        return None
    images = sa.select(_IMAGES).where(_IMAGES.c.task_uuid == task_uuid)
    found = connection.execute(images.order_by(_IMAGES.c.position)).mappings()
    return StoredTask(TaskRow(**row), tuple(ImageRow(**image) for image in found))


def _insert_new(connection: Connection, table: sa.Table, values: dict[str, Any]) -> bool:
    """Insert a row unless its key is taken; return whether it was inserted.

    Without an exception, which would undo the other writes of the transaction.
    """
    if connection.dialect.name == "postgresql":
        statement: Any = insert_postgresql(table).on_conflict_do_nothing()
    else:
        statement = insert_sqlite(table).on_conflict_do_nothing()
    return connection.execute(statement.returning(*table.primary_key), values).first() is not None


def _end(connection: Connection, task_uuid: str, status: str, error: dict[str, Any] | None) -> bool:
    """End a running task; one that has ended stays as it ended. Return whether it was running."""
    running = sa.and_(_TASKS.c.task_uuid == task_uuid, _TASKS.c.status == RUNNING)
    change = sa.update(_TASKS).where(running).values(status=status, error=error)
    return connection.execute(change).rowcount == 1


def _forget(connection: Connection, which: sa.ColumnElement[bool]) -> list[str]:
    """Delete tasks and their pictures' rows; return the pictures' names."""
    uuids = sa.select(_TASKS.c.task_uuid).where(which).scalar_subquery()
    own = _IMAGES.c.task_uuid.in_(uuids)
    names = list(connection.scalars(sa.select(_IMAGES.c.name).where(own)))
    connection.execute(sa.delete(_IMAGES).where(own))
    connection.execute(sa.delete(_TASKS).where(which))
    return names


def _prepare_sqlite(connection: Any, _: object) -> None:
    """Write ahead, so that readers never wait, and survive the death of any process.

    NORMAL does not wait for the disk at each commit: what a killed process wrote is safe with the
    kernel; a power cut may cost the last moments. FULL costs a flush for each group of commits.
    """
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
