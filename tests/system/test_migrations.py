"""Migrations of the task store, on SQLite and on PostgreSQL where one is installed."""

import asyncio
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from server.settings import SettingsError
from server.tasks.database import MIGRATIONS, open_database
from server.tasks.store import TaskStore
from server.tasks.tables import METADATA, TASKS

OLD = Path(__file__).parent / "data" / "tasks_7908d5b.sql"
TABLES = ("tasks", "images", "webhooks")
FAILING = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = "9001", "{newest}"
def upgrade():
    op.add_column("tasks", sa.Column("half", sa.Integer))
    op.execute("SELECT * FROM nowhere")
"""


@contextmanager
def connected(url: str) -> Iterator[sa.Connection]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        yield connection


def write_old_database(url: str) -> None:
    """Fill a database as a server of commit 7908d5b left it."""
    script = OLD.read_text()
    with connected(url) as connection:
        raw: Any = connection.connection.driver_connection
        if connection.dialect.name == "sqlite":
            raw.executescript(script)
        else:
            body = script[script.index("CREATE") : script.rindex("COMMIT")]
            raw.execute(body.replace("id INTEGER NOT NULL", "id SERIAL NOT NULL"))


def all_rows(url: str) -> dict[str, list[dict[str, Any]]]:
    with connected(url) as connection:
        found = {name: connection.execute(sa.text(f"SELECT * FROM {name}")) for name in TABLES}
        return {name: [dict(row) for row in rows.mappings()] for name, rows in found.items()}


def test_an_old_database_loses_nothing_and_has_the_schema_of_a_new_one(url: str) -> None:
    write_old_database(url)
    before = all_rows(url)
    assert [len(before[name]) for name in TABLES] == [6, 6, 1]
    open_database(sa.make_url(url), "power").dispose()
    after = all_rows(url)
    for name in TABLES:
        kept = [
            {column: row[column] for column in old}
            for old, row in zip(before[name], after[name], strict=True)
        ]
        assert kept == before[name]
    with connected(url) as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_a_new_database_has_the_tables_of_the_code(url: str) -> None:
    open_database(sa.make_url(url), "power").dispose()
    with connected(url) as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_a_newer_schema_is_refused_by_its_name_and_stays_as_it_is(url: str) -> None:
    open_database(sa.make_url(url), "power").dispose()
    with connected(url) as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SettingsError, match=r"schema '9999'.*none newer than '0"):
        TaskStore(url)
    with connected(url) as connection:
        assert connection.scalar(sa.text("SELECT version_num FROM alembic_version")) == "9999"


def test_a_migration_that_fails_leaves_the_schema_as_it_was(url: str, tmp_path: Path) -> None:
    open_database(sa.make_url(url), "power").dispose()
    with connected(url) as connection:
        newest = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    migrations = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, migrations, ignore=shutil.ignore_patterns("__pycache__"))
    (migrations / "versions" / "r9001_fails.py").write_text(FAILING.format(newest=newest))
    with pytest.raises(sa.exc.SQLAlchemyError, match="nowhere"):
        open_database(sa.make_url(url), "power", migrations)
    with connected(url) as connection:
        columns = {column["name"] for column in sa.inspect(connection).get_columns("tasks")}
        assert "half" not in columns
        assert connection.scalar(sa.text("SELECT version_num FROM alembic_version")) == newest
    open_database(sa.make_url(url), "power").dispose()


def test_servers_that_start_at_once_migrate_once(url: str) -> None:
    write_old_database(url)
    with ThreadPoolExecutor(4) as threads:
        stores = list(threads.map(lambda _: TaskStore(url), range(4)))

    async def scenario() -> None:
        for store in stores:
            await store.open()
            stored = await store.find("00000000-0000-4000-8000-000000000005")
            assert stored is not None
            assert len(stored.images) == 1
            await store.close()

    asyncio.run(scenario())


def test_every_column_that_code_writes_can_be_read_back_from_an_old_row(url: str) -> None:
    write_old_database(url)
    engine = open_database(sa.make_url(url), "process")
    with engine.connect() as connection:
        statuses = connection.execute(sa.select(TASKS.c.status, TASKS.c.request_id)).all()
    engine.dispose()
    assert (
        sorted(statuses)
        == [("error", None), ("running", None), ("running", None)] + [("success", None)] * 3
    )
