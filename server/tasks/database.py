"""The task store's database: how it is opened, and the migrations that bring its schema up to date.

Alembic runs the files of `migrations/versions` at start, all of them in one transaction, which
excludes every other writer: a server that fails leaves the schema as it was, and of several servers
that start at once one migrates.
"""

import logging
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from server.settings import Durability, SettingsError

log = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
ADVISORY_LOCK = 7_320_114  # a number that no other program on a database is likely to lock


def open_database(url: sa.URL, durability: Durability, migrations: Path = MIGRATIONS) -> sa.Engine:
    """Return an engine on the database, which has this version's schema.

    Raises:
        SettingsError: the database has a schema that this version does not have.
    """
    # Parameters are prompts: they stand in no message.
    engine = sa.create_engine(url, hide_parameters=True)
    if engine.dialect.name == "sqlite":
        Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
        sa.event.listen(engine, "connect", lambda raw, _: _prepare_sqlite(raw, durability))
    try:
        _migrate(engine, migrations)
    except BaseException:
        engine.dispose()
        raise
    return engine


def _migrate(engine: sa.Engine, migrations: Path) -> None:
    scripts = ScriptDirectory(str(migrations))
    newest = scripts.get_current_head()
    with engine.connect() as connection:
        if _current(connection, scripts) == newest:
            return  # nothing is written, so a database that takes nothing can still be read
    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    with engine.begin() as connection:
        _exclude_writers(connection)
        before = _current(connection, scripts)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    if before != newest:
        log.info("the task store's schema is %s now (it was %s)", newest, before or "without one")


def _current(connection: Connection, scripts: ScriptDirectory) -> str | None:
    """Return the revision of a database; None for an empty one, and from before migrations."""
    current = MigrationContext.configure(connection).get_current_revision()
    known = [script.revision for script in scripts.walk_revisions()]
    if current is not None and current not in known:
        raise SettingsError(
            f"the database of tasks.database_url has schema {current!r}, and this version has none "
            f"newer than {known[0]!r}: start the version that made it, or restore a copy of the "
            "database from before that version"
        )
    return current


def _exclude_writers(connection: Connection) -> None:
    """Begin a transaction that no other server's migration or write can enter."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ADVISORY_LOCK)))


def _prepare_sqlite(connection: Any, durability: Durability) -> None:
    """Write ahead, so that readers never wait, and survive the death of any process.

    FULL flushes the disk for each group of commits, so that a power cut costs nothing that was
    answered. NORMAL does not: what a killed process wrote is safe with the kernel, and a power cut
    may cost the last moments.
    """
    synchronous = "FULL" if durability == "power" else "NORMAL"
    cursor = connection.cursor()
    for pragma in ("busy_timeout=10000", "journal_mode=WAL", f"synchronous={synchronous}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
