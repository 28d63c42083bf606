"""Statements of the task store that several of its operations share."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite

from server.runware.envelope import ErrorObject
from server.tasks.tables import IMAGES, RUNNING, TASKS, ImageRow, StoredTask, TaskRow


def find(connection: Connection, task_uuid: str) -> StoredTask | None:
    """Return a task with its finished images in order."""
    row = (
        connection.execute(sa.select(TASKS).where(TASKS.c.task_uuid == task_uuid))
        .mappings()
        .first()
    )
    if row is None:
        return None
    images = sa.select(IMAGES).where(IMAGES.c.task_uuid == task_uuid)
    found = connection.execute(images.order_by(IMAGES.c.position)).mappings()
    return StoredTask(TaskRow(**row), tuple(ImageRow(**image) for image in found))


def insert_new(connection: Connection, table: sa.Table, values: dict[str, Any]) -> bool:
    """Insert a row unless its key is taken; return whether it was inserted.

    Without an exception, which would undo the other writes of the transaction.
    """
    if connection.dialect.name == "postgresql":
        statement: Any = insert_postgresql(table).on_conflict_do_nothing()
    else:
        statement = insert_sqlite(table).on_conflict_do_nothing()
    return connection.execute(statement.returning(*table.primary_key), values).first() is not None


def end(
    connection: Connection,
    task_uuid: str,
    status: str,
    error: ErrorObject | None,
    *conditions: sa.ColumnElement[bool],
) -> bool:
    """End a running task; one that has ended stays as it ended. Return whether it was running."""
    running = sa.and_(TASKS.c.task_uuid == task_uuid, TASKS.c.status == RUNNING, *conditions)
    change = sa.update(TASKS).where(running).values(status=status, error=error)
    return connection.execute(change).rowcount == 1


def forget(connection: Connection, which: sa.ColumnElement[bool]) -> list[str]:
    """Delete tasks and their images' rows; return the images' names."""
    uuids = sa.select(TASKS.c.task_uuid).where(which).scalar_subquery()
    belonging = IMAGES.c.task_uuid.in_(uuids)
    names = list(connection.scalars(sa.select(IMAGES.c.name).where(belonging)))
    connection.execute(sa.delete(IMAGES).where(belonging))
    connection.execute(sa.delete(TASKS).where(which))
    return names
