"""The lock of a data folder: a second server on the same tasks would generate all of them again."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from server.settings import SettingsError, TaskSettings


@contextmanager
def locked_data(settings: TaskSettings) -> Iterator[None]:
    """Hold the lock of an SQLite database while the block runs.

    The kernel frees it as soon as this process is dead, however it died. Servers that share their
    tasks hold it together; a server alone excludes them. Databases of other kinds have no lock:
    they are made for several servers.

    Raises:
        SettingsError: another server holds it; the message has its process id.
    """
    file = _lock_file(settings.database_url)
    if file is None:
        yield
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as e:
        raise SettingsError(
            f"the lock {file} of the task store cannot be made ({e.strerror}): the folder of "
            "tasks.database_url must be writable"
        ) from None
    try:
        _take(descriptor, file, is_shared=settings.is_shared)
        yield
    finally:
        os.close(descriptor)


def _lock_file(database_url: str) -> Path | None:
    try:
        url = sa.make_url(database_url)
    except SQLAlchemyError:
        return None  # the store refuses it, and says why
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    return Path(f"{url.database}.lock")


def _take(descriptor: int, file: Path, *, is_shared: bool) -> None:
    kind = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "unknown"
        raise SettingsError(
            f"another server (process {holder}) uses this task store, as {file} shows: stop it, "
            "give this one another tasks.database_url, or set tasks.is_shared = true for both"
        ) from None
    except OSError as e:
        raise SettingsError(
            f"the lock {file} of the task store cannot be taken ({e.strerror}): put the database "
            "of tasks.database_url on a file system with locks"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
