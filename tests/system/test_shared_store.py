"""Two servers on one store: what one accepted the other finishes, once, when the first is gone.

The stores are an SQLite file and a folder, or PostgreSQL and an S3 server.
"""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
import sqlalchemy as sa
from moto.server import ThreadedMotoServer

from tests.system.conftest import START_TIMEOUT_S, ServerProcess, new_database
from tests.system.test_crash import make_task
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
LEASE_S = 3.0
NUM_RENEWALS = 4  # three a lease: longer than a lease
BUCKET = "images"
Pair = tuple[ServerProcess, ServerProcess]


@pytest.fixture
def s3() -> Iterator[dict[str, str]]:
    """An S3 server with a bucket; yields the variables that lead there."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    bucket_of(variables).create()
    yield variables
    server.stop()


def bucket_of(variables: dict[str, str]) -> Any:
    session = boto3.Session("test", "test", region_name="us-east-1")
    return session.resource("s3", endpoint_url=variables["AWS_ENDPOINT_URL"]).Bucket(BUCKET)


@pytest.fixture
def pair(
    server_factory: Callable[..., ServerProcess], tiny_checkpoint: Path, request: Any
) -> Iterator[Pair]:
    """Two servers on an SQLite file and a folder, or with `stores` as its parameter on others."""
    shared = {
        "HYIMAGE_TASKS__IS_SHARED": "true",
        "HYIMAGE_TASKS__LEASE_S": str(LEASE_S),
        "HYIMAGE_SERVER__DRAIN_S": "0",  # so that SIGTERM leaves tasks to the other
    }
    if getattr(request, "param", "") == "postgres and s3":
        shared |= {
            "HYIMAGE_TASKS__DATABASE_URL": new_database(request.getfixturevalue("postgres")),
            "HYIMAGE_IMAGES__STORE": f"s3://{BUCKET}/here",
            **request.getfixturevalue("s3"),
        }
    first, second = (server_factory(tiny_checkpoint, **shared) for _ in range(2))
    first.launch()
    wait_until(first.is_listening, START_TIMEOUT_S, every_s=0.1)
    second.launch()  # while the first loads its checkpoint
    for server in (first, second):
        wait_until(server.is_ready, START_TIMEOUT_S, every_s=0.1)
    yield first, second
    for server in (first, second):
        server.stop()


def rows(server: ServerProcess, query: str) -> list[tuple[Any, ...]]:
    """Return what the task store of a server answers, whichever it is."""
    url = server.environment["HYIMAGE_TASKS__DATABASE_URL"]
    with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
        return [tuple(row) for row in connection.execute(sa.text(query))]


@pytest.mark.parametrize(
    ("pair", "how"),
    [("postgres and s3", signal.SIGKILL), ("sqlite and a folder", signal.SIGTERM)],
    indirect=["pair"],
    ids=["SIGKILL, PostgreSQL and S3", "SIGTERM, SQLite and a folder"],
)
def test_tasks_of_a_server_that_ends_are_finished_by_the_other(
    pair: Pair, how: signal.Signals
) -> None:
    first, second = pair
    tasks = [
        make_task(deliveryMethod="async", numberResults=2, seed=index, steps=15)
        for index in range(6)
    ]
    for task in tasks:
        assert "errors" not in first.post(task)
    ((holder,),) = rows(first, "SELECT DISTINCT holder FROM tasks")
    wait_until(lambda: b'hyimage_steps_total{kind="computed"} 0.0' not in first.get("/metrics")[0])
    first.stop(how)  # while it draws
    if how is signal.SIGTERM:  # given up, not left to run out
        held = "SELECT count(*) FROM tasks WHERE status = 'running' AND held_until > 0"
        assert rows(first, f"{held} AND holder = '{holder}'") == [(0,)]
    for task in tasks:
        items = second.wait_for(task["taskUUID"])
        assert [item["seed"] for item in items] == [task["seed"], task["seed"] + 1]
        for item in items:
            path = urlsplit(item["imageURL"]).path  # without a public_url the host is the first's
            assert second.get(path)[0].startswith(b"\x89PNG")
    counted = rows(second, "SELECT task_uuid, position, count(*) FROM images GROUP BY 1, 2")
    assert sorted((str(uuid), position) for uuid, position, _ in counted) == sorted(
        (task["taskUUID"], position) for task in tasks for position in range(2)
    )
    assert {count for *_, count in counted} == {1}
    assert {status for (status,) in rows(second, "SELECT status FROM tasks")} == {"success"}
    assert len({holder, *(h for (h,) in rows(second, "SELECT DISTINCT holder FROM tasks"))}) > 1


def test_a_server_that_lives_keeps_its_tasks_and_both_answer_for_them(
    pair: Pair,
) -> None:
    first, second = pair
    task = make_task(deliveryMethod="async", numberResults=4, seed=1, steps=100)
    first.post(task)
    leases: set[tuple[str, float]] = set()

    def is_renewed_often() -> bool:
        leases.update(
            (h, until) for h, until in rows(first, "SELECT holder, held_until FROM tasks")
        )
        return len(leases) > NUM_RENEWALS

    wait_until(is_renewed_often, every_s=0.1)
    assert len({holder for holder, _ in leases}) == 1
    ours, theirs = (server.wait_for(task["taskUUID"]) for server in pair)
    seeds = [item["seed"] for item in ours]
    assert seeds == [item["seed"] for item in theirs] == [1, 2, 3, 4]
    duplicate = second.post({**task, "seed": 9})
    assert duplicate["errors"][0]["code"] == "conflictTaskUUID"
