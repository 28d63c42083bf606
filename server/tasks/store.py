"""Tasks, their pictures and their pending webhook calls, on disk before anybody is told of them.

SQLite by default, any database that SQLAlchemy's asyncio drivers reach by URL. Seeds are stored as
text: the API's largest lies beyond a signed 64-bit integer.
"""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy import JSON, Float, ForeignKey, Integer, String, delete, event, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

RUNNING, SUCCESS, FAILED = "running", "success", "error"


class Base(DeclarativeBase):
    """All tables."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {dict[str, Any]: JSON, list[str]: JSON}


class TaskRow(Base):
    """One accepted task."""

    __tablename__ = "tasks"
    task_uuid: Mapped[str] = mapped_column(String(36), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    request: Mapped[dict[str, Any]]
    base_url: Mapped[str]
    seeds: Mapped[list[str]]
    image_uuids: Mapped[list[str]]
    status: Mapped[str] = mapped_column(String(8), index=True)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Float, index=True)


class ImageRow(Base):
    """One finished picture; the file lies in the image store under `name`."""

    __tablename__ = "images"
    image_uuid: Mapped[str] = mapped_column(String(36), primary_key=True)
    task_uuid: Mapped[str] = mapped_column(ForeignKey("tasks.task_uuid", ondelete="CASCADE"))
    position: Mapped[int] = mapped_column(Integer)
    name: Mapped[str]
    is_nsfw: Mapped[bool | None]
    expires_at: Mapped[float] = mapped_column(Float, index=True)


class WebhookRow(Base):
    """One call that has to be made; gone once it was answered with 2xx or given up."""

    __tablename__ = "webhooks"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    task_uuid: Mapped[str] = mapped_column(String(36))
    position: Mapped[int] = mapped_column(Integer)
    url: Mapped[str]
    body: Mapped[dict[str, Any]]
    num_tries: Mapped[int] = mapped_column(Integer, default=0)
    next_try_at: Mapped[float] = mapped_column(Float, index=True)


class DuplicateTaskError(ValueError):
    """A task with this UUID is remembered already."""


@dataclass(frozen=True, slots=True)
class StoredTask:
    """A task and what has become of it."""

    row: TaskRow
    images: tuple[ImageRow, ...]


class TaskStore:
    """Every call is one transaction."""

    def __init__(self, url: str) -> None:
        self._engine = create_async_engine(url)
        self._session = async_sessionmaker(self._engine, expire_on_commit=False)
        self._file = make_url(url).database if url.startswith("sqlite") else None
        if self._file is not None:
            event.listen(self._engine.sync_engine, "connect", _prepare_sqlite)

    async def open(self) -> None:
        """Create what is missing."""
        if self._file and self._file != ":memory:":
            Path(self._file).parent.mkdir(parents=True, exist_ok=True)
        async with self._engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)

    async def close(self) -> None:
        await self._engine.dispose()

    async def add(self, row: TaskRow) -> None:
        """Remember a task.

        Raises:
            DuplicateTaskError: its UUID is taken.
        """
        try:
            async with self._transaction() as session:
                session.add(row)
        except IntegrityError:
            raise DuplicateTaskError(row.task_uuid) from None

    async def find(self, task_uuid: str) -> StoredTask | None:
        async with self._session() as session:
            row = await session.get(TaskRow, task_uuid)
            if row is None:
                return None
            images = await session.scalars(
                select(ImageRow).where(ImageRow.task_uuid == task_uuid).order_by(ImageRow.position)
            )
            return StoredTask(row, tuple(images))

    async def list_running(self) -> list[StoredTask]:
        """Return the accepted tasks that have not ended, oldest first."""
        async with self._session() as session:
            uuids = await session.scalars(
                select(TaskRow.task_uuid)
                .where(TaskRow.status == RUNNING)
                .order_by(TaskRow.created_at)
            )
            found = [await self.find(task_uuid) for task_uuid in uuids]
        return [task for task in found if task is not None]

    async def add_image(self, image: ImageRow, webhook: WebhookRow | None) -> None:
        """Remember a finished picture together with the call that announces it.

        A picture that is there already, from before a crash, is left as it is.
        """
        try:
            async with self._transaction() as session:
                session.add(image)
                await session.flush()
                if webhook is not None:
                    session.add(webhook)
        except IntegrityError:
            return

    async def finish(self, task_uuid: str) -> None:
        await self._end(task_uuid, SUCCESS, None, None)

    async def fail(
        self, task_uuid: str, error: dict[str, Any], webhook: WebhookRow | None = None
    ) -> None:
        await self._end(task_uuid, FAILED, error, webhook)

    async def release(self, task_uuid: str) -> None:
        """Forget a task, so that its UUID can be used again."""
        async with self._transaction() as session:
            await session.execute(delete(TaskRow).where(TaskRow.task_uuid == task_uuid))

    async def list_due_webhooks(self, now: float, limit: int) -> Sequence[WebhookRow]:
        async with self._session() as session:
            due = select(WebhookRow).where(WebhookRow.next_try_at <= now).limit(limit)
            return (await session.scalars(due.order_by(WebhookRow.next_try_at))).all()

    async def delay_webhook(self, webhook_id: int, num_tries: int, next_try_at: float) -> None:
        async with self._transaction() as session:
            await session.execute(
                update(WebhookRow)
                .where(WebhookRow.id == webhook_id)
                .values(num_tries=num_tries, next_try_at=next_try_at)
            )

    async def drop_webhook(self, webhook_id: int) -> None:
        async with self._transaction() as session:
            await session.execute(delete(WebhookRow).where(WebhookRow.id == webhook_id))

    async def list_expired_images(self, now: float) -> list[str]:
        """Return the names of pictures whose time is over."""
        async with self._session() as session:
            names = await session.scalars(select(ImageRow.name).where(ImageRow.expires_at <= now))
            return list(names)

    async def purge(self, retention_s: float) -> list[str]:
        """Forget tasks that ended long ago; return the names of their pictures."""
        before = time.time() - retention_s
        async with self._transaction() as session:
            old = select(TaskRow.task_uuid).where(
                TaskRow.status != RUNNING, TaskRow.created_at <= before
            )
            names = await session.scalars(select(ImageRow.name).where(ImageRow.task_uuid.in_(old)))
            found = list(names)
            await session.execute(delete(ImageRow).where(ImageRow.task_uuid.in_(old)))
            await session.execute(
                delete(TaskRow).where(TaskRow.status != RUNNING, TaskRow.created_at <= before)
            )
        return found

    async def _end(
        self,
        task_uuid: str,
        status: str,
        error: dict[str, Any] | None,
        webhook: WebhookRow | None,
    ) -> None:
        """End a running task; one that has ended stays as it ended."""
        async with self._transaction() as session:
            result = await session.execute(
                update(TaskRow)
                .where(TaskRow.task_uuid == task_uuid, TaskRow.status == RUNNING)
                .values(status=status, error=error)
                .returning(TaskRow.task_uuid)
            )
            if result.first() is not None and webhook is not None:
                session.add(webhook)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncSession]:
        async with self._session() as session, session.begin():
            yield session


def _prepare_sqlite(connection: Any, _: object) -> None:
    """Write ahead, so that readers never wait; and wait rather than fail for another writer."""
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
