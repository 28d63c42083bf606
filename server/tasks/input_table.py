"""The table of input images: which bytes the image store has, and until when they are kept.

A row stands before its bytes are written and after they are deleted, so that a killed server leaves
none behind. It has a digest only while the bytes are whole: other tasks find them by it. A name is
never used twice, so what is deleted is never what another task has just found.
"""

import sqlalchemy as sa
from sqlalchemy import Connection

from server.tasks.store import TaskStore
from server.tasks.tables import FOREVER, IMAGES, INPUTS, RUNNING, TASKS


class InputTable:
    """The rows of input images, in the database of the task store."""

    def __init__(self, store: TaskStore) -> None:
        self._store = store

    async def find_image(self, image_uuid: str, now: float) -> str | None:
        """Return the name of an image that was uploaded or generated here, unless it expired."""
        known = sa.and_(IMAGES.c.expires_at > now, IMAGES.c.expires_at < FOREVER)
        wanted = sa.select(IMAGES.c.name).where(IMAGES.c.image_uuid == image_uuid, known)
        return await self._store.read(lambda connection: connection.scalar(wanted))

    async def find_or_reserve(self, sha256: str, new_name: str, now: float, until: float) -> str:
        """Return the name of whole bytes with this digest, kept longer now; else reserve a name."""
        whole = sa.and_(INPUTS.c.sha256 == sha256, INPUTS.c.expires_at > now)

        def write(connection: Connection) -> str:
            row = connection.execute(sa.select(INPUTS).where(whole).limit(1)).first()
            if row is not None:
                kept_until = max(until, row.expires_at)
                keep = sa.update(INPUTS).where(INPUTS.c.name == row.name, whole)
                # Nothing is changed if another server has just taken it to delete it.
                if connection.execute(keep.values(expires_at=kept_until)).rowcount:
                    return str(row.name)
            values = {"name": new_name, "sha256": None, "expires_at": until}
            connection.execute(sa.insert(INPUTS), values)
            return new_name

        return await self._store.write(write)

    async def complete(self, name: str, sha256: str) -> None:
        """Note that the bytes of a reserved name are written."""
        change = sa.update(INPUTS).where(INPUTS.c.name == name).values(sha256=sha256)
        await self._store.write(lambda connection: connection.execute(change).rowcount)

    async def take_expired(self, now: float) -> list[str]:
        """Return the names of expired bytes that no running task needs; no task finds them now."""
        is_expired = INPUTS.c.expires_at <= now
        expired = sa.select(INPUTS.c.name).where(is_expired)
        if not await self._store.read(lambda c: list(c.scalars(expired.limit(1)))):
            return []

        def write(connection: Connection) -> list[str]:
            running = sa.select(TASKS.c.inputs).where(TASKS.c.status == RUNNING)
            needed = {one["name"] for row in connection.scalars(running) for one in row or ()}
            names = [name for name in connection.scalars(expired) if name not in needed]
            # Again: another server may have found one in the meantime.
            hide = sa.update(INPUTS).where(INPUTS.c.name.in_(names), is_expired)
            return list(connection.scalars(hide.values(sha256=None).returning(INPUTS.c.name)))

        return await self._store.write(write)

    async def forget(self, names: list[str]) -> None:
        """Delete the rows of bytes that are deleted."""
        change = sa.delete(INPUTS).where(INPUTS.c.name.in_(names))
        await self._store.write(lambda connection: connection.execute(change).rowcount)
