"""A database or an image folder that takes nothing: tasks end in errors, and all heals."""

import logging
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from server.settings import Settings
from server.tasks.store import TaskStore
from tests.contract.conftest import FakeEngine, make_task, tasks_of
from tests.waiting import wait_until

SECRET = "a secret red fox"


def execute(settings: Settings, statement: str) -> list[tuple[object, ...]]:
    database = settings.tasks.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(database)) as connection, connection:
        return list(connection.execute(statement))


def refuse(settings: Settings, event: str) -> None:
    """Let the database refuse an event on its tasks, as a full disk does."""
    execute(
        settings,
        f"CREATE TRIGGER full BEFORE {event} ON tasks BEGIN "
        "SELECT RAISE(ABORT, 'database or disk is full'); END",
    )


def test_a_full_disk_refuses_tasks_without_a_prompt_or_traceback_in_the_log(
    client: TestClient, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    refuse(settings, "INSERT")
    with caplog.at_level(logging.DEBUG):
        response = client.post("/v1", json=[make_task(positivePrompt=SECRET)])
    assert response.status_code == 503
    assert response.json()["errors"][0]["code"] == "serviceUnavailable"
    assert SECRET not in caplog.text
    assert "Traceback" not in caplog.text
    (line,) = [r for r in caplog.records if "the task store does not work" in r.getMessage()]
    assert "disk is full" in line.getMessage()
    execute(settings, "DROP TRIGGER full")
    assert client.post("/v1", json=[make_task()]).status_code == 200


def test_a_task_whose_end_meets_a_full_disk_ends_when_space_is_back(
    client: TestClient, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    refuse(settings, "UPDATE")
    task = make_task(deliveryMethod="async", positivePrompt=SECRET)
    client.post("/v1", json=[task])
    wait_until(lambda: not tasks_of(client).num_running_tasks)
    execute(settings, "DROP TRIGGER full")
    wait_until(lambda: execute(settings, "SELECT status FROM tasks") == [("success",)])
    assert SECRET not in caplog.text
    assert "Traceback" not in caplog.text


def test_an_image_folder_that_cannot_be_written_ends_tasks_and_heals(
    client: TestClient, settings: Settings, engine: FakeEngine
) -> None:
    folder = Path(settings.images.store)
    client.post("/v1", json=[make_task()])
    shutil.rmtree(folder)
    folder.write_text("a file where the folder was")
    task = make_task(deliveryMethod="async")
    client.post("/v1", json=[task])
    wait_until(lambda: not tasks_of(client).num_running_tasks)
    poll = {"taskType": "getResponse", "taskUUID": task["taskUUID"]}
    assert client.post("/v1", json=[poll]).json()["errors"][0]["code"] == "serviceUnavailable"
    folder.unlink()
    (item,) = client.post("/v1", json=[make_task(seed=5)]).json()["data"]
    assert client.get(item["imageURL"]).content == b"image 5"


def test_an_image_folder_that_was_deleted_is_made_again(
    client: TestClient, settings: Settings
) -> None:
    client.post("/v1", json=[make_task()])
    shutil.rmtree(settings.images.store)
    (item,) = client.post("/v1", json=[make_task(seed=5)]).json()["data"]
    assert client.get(item["imageURL"]).content == b"image 5"


@pytest.mark.parametrize(("durability", "synchronous"), [("power", 2), ("process", 1)])
def test_durability_decides_whether_a_commit_waits_for_the_disk(
    tmp_path: Path, durability: str, synchronous: int
) -> None:
    class OpenStore(TaskStore):
        def synchronous(self) -> object:
            with self._engine.connect() as connection:
                return connection.scalar(sa.text("PRAGMA synchronous"))

    settings = Settings.model_validate({"tasks": {"durability": durability}})
    store = OpenStore(f"sqlite:///{tmp_path}/tasks.db", settings.tasks.durability)
    assert store.synchronous() == synchronous
    assert Settings().tasks.durability == "power"
