"""A server on the data of an old one: every task that it accepted is still there, or goes on."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from server.app import create_app
from server.settings import Settings
from tests.contract.conftest import FakeEngine, change, tasks_of
from tests.waiting import wait_until

OLD = Path(__file__).parents[1] / "system" / "data" / "tasks_7908d5b.sql"


def task_uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


@pytest.fixture
def old_images(settings: Settings) -> list[str]:
    """The database and images of the old server; returns the images' names."""
    folder = Path(settings.images.store)
    folder.mkdir()
    database = settings.tasks.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.executescript(OLD.read_text())
        # As if the old server had stopped a moment ago.
        connection.execute("UPDATE tasks SET created_at = ?", (time.time(),))
        connection.execute("UPDATE images SET expires_at = ?", (time.time() + 600,))
        names = [name for (name,) in connection.execute("SELECT name FROM images")]
    for name in names:
        (folder / name).write_bytes(b"old " + name.encode())
    return names


@pytest.fixture
def upgraded(old_images: list[str], settings: Settings, engine: FakeEngine) -> Iterator[TestClient]:
    reaching = change(settings, egress__allowed_networks=("127.0.0.0/8",))
    app: Any = create_app(reaching, engine)
    with TestClient(app, base_url="http://old.test:8000") as client:
        wait_until(lambda: not tasks_of(client).num_running_tasks)
        yield client


def poll(client: TestClient, number: int) -> dict[str, Any]:
    task = {"taskType": "getResponse", "taskUUID": task_uuid(number)}
    envelope: dict[str, Any] = client.post("/v1", json=[task]).json()
    return envelope


def test_finished_tasks_return_their_old_images(
    upgraded: TestClient, old_images: list[str]
) -> None:
    urls = [item["imageURL"] for item in poll(upgraded, 1)["data"]]
    assert [upgraded.get(url).content for url in urls] == [
        b"old " + url.rpartition("/")[2].encode() for url in urls
    ]
    assert {url.rpartition("/")[2] for url in urls} < set(old_images)
    (item,) = poll(upgraded, 2)["data"]
    assert (item["status"], item["seed"]) == ("success", 9223372036854776000)
    assert item["imageBase64Data"]


def test_a_failed_task_still_reports_its_error(upgraded: TestClient) -> None:
    (error,) = poll(upgraded, 3)["errors"]
    assert (error["code"], error["taskUUID"]) == ("inferenceError", task_uuid(3))


def test_running_tasks_are_finished_without_generating_an_image_twice(
    upgraded: TestClient, engine: FakeEngine
) -> None:
    assert sorted(job.request.seeds for job in engine.jobs) == [(12, 13), (13,)]
    assert [item["seed"] for item in poll(upgraded, 5)["data"]] == [11, 12, 13]
    assert [item["status"] for item in poll(upgraded, 6)["data"]] == ["success"]
    first = poll(upgraded, 5)["data"][0]["imageURL"]
    assert upgraded.get(first).content.startswith(b"old ")


def test_the_webhook_call_that_was_due_is_not_lost(
    upgraded: TestClient, settings: Settings
) -> None:
    database = settings.tasks.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(database)) as connection:
        ((url, num_tries),) = connection.execute("SELECT url, num_tries FROM webhooks").fetchall()
    assert url == "http://127.0.0.1:9/hook"
    assert num_tries >= 1
