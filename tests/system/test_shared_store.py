"""Two servers on one store: what one accepted the other finishes, once, when the first is gone."""

import contextlib
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import ServerProcess
from tests.system.test_crash import make_task

pytestmark = pytest.mark.slow
LEASE_S = 3.0


@pytest.fixture
def pair(
    server_factory: Callable[..., ServerProcess], tiny_checkpoint: Path
) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    shared = {"HYIMAGE_TASKS__IS_SHARED": "true", "HYIMAGE_TASKS__LEASE_S": str(LEASE_S)}
    first, second = (server_factory(tiny_checkpoint, **shared) for _ in range(2))
    first.start()
    second.start()
    yield first, second
    for server in (first, second):
        server.stop()


def rows(server: ServerProcess, query: str) -> list[tuple[Any, ...]]:
    uri = f"file:{server.folder}/tasks.db?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        return connection.execute(query).fetchall()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_tasks_of_a_server_that_ends_are_finished_by_the_other(
    pair: tuple[ServerProcess, ServerProcess], how: signal.Signals
) -> None:
    first, second = pair
    tasks = [
        make_task(deliveryMethod="async", numberResults=2, seed=index, steps=15)
        for index in range(6)
    ]
    for task in tasks:
        assert "errors" not in first.post(task)
    first.stop(how)
    stopped = time.monotonic()
    for task in tasks:
        items = second.wait_for(task["taskUUID"])
        assert [item["seed"] for item in items] == [task["seed"], task["seed"] + 1]
    if how is signal.SIGTERM:  # given up, not left to run out
        assert time.monotonic() - stopped < 60
    counted = rows(second, "SELECT task_uuid, position, count(*) FROM images GROUP BY 1, 2")
    assert sorted((uuid, position) for uuid, position, _ in counted) == sorted(
        (task["taskUUID"], position) for task in tasks for position in range(2)
    )
    assert {count for *_, count in counted} == {1}
    assert {status for (status,) in rows(second, "SELECT status FROM tasks")} == {"success"}


def test_a_server_that_lives_keeps_its_tasks_and_both_answer_for_them(
    pair: tuple[ServerProcess, ServerProcess],
) -> None:
    first, second = pair
    task = make_task(deliveryMethod="async", numberResults=4, seed=1, steps=60)
    first.post(task)
    deadline = time.monotonic() + 2.5 * LEASE_S
    holders = set()
    while time.monotonic() < deadline:
        holders |= set(rows(first, "SELECT holder FROM tasks"))
        time.sleep(0.2)
    assert len(holders) == 1
    ours, theirs = (server.wait_for(task["taskUUID"]) for server in pair)
    seeds = [item["seed"] for item in ours]
    assert seeds == [item["seed"] for item in theirs] == [1, 2, 3, 4]
    duplicate = second.post({**task, "seed": 9})
    assert duplicate["errors"][0]["code"] == "conflictTaskUUID"
