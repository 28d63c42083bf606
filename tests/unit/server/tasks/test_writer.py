"""The writer thread: one faulty write never costs another one, nor the thread."""

import asyncio
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from server.tasks.writer import Writer

NUMBERS = sa.Table("numbers", sa.MetaData(), sa.Column("number", sa.Integer, primary_key=True))
TIMEOUT_S = 10.0


def insert(number: int) -> Callable[[Connection], int]:
    return lambda connection: connection.execute(sa.insert(NUMBERS), {"number": number}).rowcount


def fail(connection: Connection) -> int:
    raise KeyError("a bug in an operation, not in the database")


def empty_database() -> sa.Engine:
    engine = sa.create_engine(
        "sqlite://", poolclass=sa.StaticPool, connect_args={"check_same_thread": False}
    )
    NUMBERS.create(engine)
    return engine


def test_an_operation_that_raises_anything_fails_alone_and_later_writes_are_committed() -> None:
    engine = empty_database()

    async def write() -> list[int | BaseException]:
        writer = Writer(engine)
        # Queued before the thread runs, so that all of them share one transaction.
        batch = [asyncio.ensure_future(writer.run(o)) for o in (insert(1), fail, insert(2))]
        await asyncio.sleep(0)
        writer.start()
        results = await asyncio.gather(*batch, return_exceptions=True)
        results.append(await writer.run(insert(3)))
        await writer.stop()
        return results

    results = asyncio.run(asyncio.wait_for(write(), TIMEOUT_S))
    assert isinstance(results[1], KeyError)
    assert [r for r in results if isinstance(r, int)] == [1, 1, 1]
    with engine.connect() as connection:
        assert list(connection.scalars(sa.select(NUMBERS.c.number))) == [1, 2, 3]


def test_a_write_that_breaks_a_rule_of_the_database_fails_alone() -> None:
    engine = empty_database()

    async def write() -> None:
        writer = Writer(engine)
        writer.start()
        await writer.run(insert(1))
        with pytest.raises(sa.exc.IntegrityError):
            await writer.run(insert(1))
        await writer.run(insert(2))
        await writer.stop()

    asyncio.run(asyncio.wait_for(write(), TIMEOUT_S))
