"""Two servers on one store: what one accepted the other finishes, once, when the first is gone."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.conftest import ServerProcess
from tests.system.test_crash import make_task
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
LEASE_S = 3.0
NUM_RENEWALS = 4  # three a lease: longer than a lease


@pytest.fixture
def pair(
    server_factory: Callable[..., ServerProcess], tiny_checkpoint: Path
) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    shared = {
        "HYIMAGE_TASKS__IS_SHARED": "true",
        "HYIMAGE_TASKS__LEASE_S": str(LEASE_S),
        "HYIMAGE_SERVER__DRAIN_S": "0",  # so that SIGTERM leaves tasks to the other
    }
    first, second = (server_factory(tiny_checkpoint, **shared) for _ in range(2))
    first.start()
    second.start()
    yield first, second
    for server in (first, second):
        server.stop()


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
    ((holder,),) = first.rows("SELECT DISTINCT holder FROM tasks")
    first.stop(how)
    if how is signal.SIGTERM:  # given up, not left to run out
        held = "SELECT count(*) FROM tasks WHERE status = 'running' AND held_until > 0"
        assert first.rows(f"{held} AND holder = '{holder}'") == [(0,)]
    for task in tasks:
        items = second.wait_for(task["taskUUID"])
        assert [item["seed"] for item in items] == [task["seed"], task["seed"] + 1]
    counted = second.rows("SELECT task_uuid, position, count(*) FROM images GROUP BY 1, 2")
    assert sorted((uuid, position) for uuid, position, _ in counted) == sorted(
        (task["taskUUID"], position) for task in tasks for position in range(2)
    )
    assert {count for *_, count in counted} == {1}
    assert {status for (status,) in second.rows("SELECT status FROM tasks")} == {"success"}


def test_a_server_that_lives_keeps_its_tasks_and_both_answer_for_them(
    pair: tuple[ServerProcess, ServerProcess],
) -> None:
    first, second = pair
    task = make_task(deliveryMethod="async", numberResults=4, seed=1, steps=100)
    first.post(task)
    leases: set[tuple[str, float]] = set()

    def is_renewed_often() -> bool:
        leases.update((h, until) for h, until in first.rows("SELECT holder, held_until FROM tasks"))
        return len(leases) > NUM_RENEWALS

    wait_until(is_renewed_often, every_s=0.1)
    assert len({holder for holder, _ in leases}) == 1
    ours, theirs = (server.wait_for(task["taskUUID"]) for server in pair)
    seeds = [item["seed"] for item in ours]
    assert seeds == [item["seed"] for item in theirs] == [1, 2, 3, 4]
    duplicate = second.post({**task, "seed": 9})
    assert duplicate["errors"][0]["code"] == "conflictTaskUUID"
