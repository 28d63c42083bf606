"""Statements of the task store that several of its operations share."""

from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite

from server.runware.envelope import ErrorObject
from server.tasks.tables import IMAGES, RUNNING, TASKS, ImageRow, StoredTask, TaskRow

# Built once: a task is ended for every request, and building costs as much as running.
_END = (
    sa.update(TASKS)
    .where(TASKS.c.task_uuid == sa.bindparam("ended_uuid"), TASKS.c.status == RUNNING)
    .values(
        status=sa.bindparam("ended_as"),
        error=sa.bindparam("ended_by", type_=TASKS.c.error.type),
    )
)


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
    statement = _insertion(connection.dialect.name, table)
    return connection.execute(statement, values).first() is not None


@lru_cache
def _insertion(dialect: str, table: sa.Table) -> sa.Executable:
    if dialect == "postgresql":
        statement: Any = insert_postgresql(table).on_conflict_do_nothing()
    else:
        statement = insert_sqlite(table).on_conflict_do_nothing()
    inserted: sa.Executable = statement.returning(*table.primary_key)
    return inserted


def end(
    connection: Connection,
    task_uuid: str,
    status: str,
    error: ErrorObject | None,
    *conditions: sa.ColumnElement[bool],
) -> bool:
    """End a running task; one that has ended stays as it ended. Return whether it was running."""
    change = _END.where(*conditions) if conditions else _END
    values = {"ended_uuid": task_uuid, "ended_as": status, "ended_by": error}
    return connection.execute(change, values).rowcount == 1


def forget(connection: Connection, which: sa.ColumnElement[bool]) -> list[str]:
    """Delete tasks and their images' rows; return the images' names."""
    uuids = sa.select(TASKS.c.task_uuid).where(which).scalar_subquery()
    belonging = IMAGES.c.task_uuid.in_(uuids)
    names = list(connection.scalars(sa.select(IMAGES.c.name).where(belonging)))
    connection.execute(sa.delete(IMAGES).where(belonging))
    connection.execute(sa.delete(TASKS).where(which))
    return names
