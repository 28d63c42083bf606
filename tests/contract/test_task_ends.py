"""Every accepted task ends exactly once, whatever raises while it is generated."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from fastapi.testclient import TestClient

from server.app import create_app
from server.delivery.images import ImageStore
from server.delivery.safety import SafetyChecker
from server.settings import Settings
from tests.contract.conftest import FakeEngine, change, make_task, tasks_of
from tests.listener import Listener
from tests.waiting import wait_until


class FaultyDetector:
    """One that has a bug."""

    def is_nsfw(self, encoded: bytes) -> bool:
        raise KeyError("a bug of the detector")


class SoundDetector:
    """One that finds nothing."""

    def is_nsfw(self, encoded: bytes) -> bool:
        return False


class UnreadableStore(ImageStore):
    """One that keeps images and returns none."""

    async def load(self, name: str) -> bytes | None:
        raise AssertionError("an image was read back")


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture(params=["engine", "checker"])
def faulty(
    request: pytest.FixtureRequest, settings: Settings, engine: FakeEngine
) -> Iterator[TestClient]:
    """A server on which a bug raises inside every task."""
    safety = SafetyChecker(SoundDetector())
    if request.param == "engine":
        engine.fault = KeyError("a bug of the engine")
    else:
        safety = SafetyChecker(FaultyDetector())
    reachable = change(settings, egress__allowed_networks=("127.0.0.0/8",))
    with TestClient(create_app(reachable, engine, safety=safety)) as client:
        yield client


def checked_task(**changes: Any) -> dict[str, Any]:
    return make_task(safety={"checkContent": True}, **changes)


def poll(client: TestClient, task: dict[str, Any]) -> dict[str, Any]:
    body = [{"taskType": "getResponse", "taskUUID": task["taskUUID"]}]
    envelope: dict[str, Any] = client.post("/v1", json=body).json()
    return envelope


def statuses(settings: Settings) -> list[str]:
    database = settings.tasks.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(database)) as connection:
        return [status for (status,) in connection.execute("SELECT status FROM tasks")]


def test_a_bug_ends_a_followed_task_with_an_error(faulty: TestClient, settings: Settings) -> None:
    task = checked_task()
    response = faulty.post("/v1", json=[task])
    assert response.status_code == 500
    (error,) = response.json()["errors"]
    assert (error["code"], error["taskUUID"]) == ("internalServerError", task["taskUUID"])
    assert "bug" not in response.text
    assert "running" not in statuses(settings)
    assert tasks_of(faulty).num_running_tasks == 0


def test_a_bug_ends_a_task_on_a_socket_with_one_frame(
    faulty: TestClient, settings: Settings
) -> None:
    with faulty.websocket_connect("/v1") as socket:
        socket.send_json([{"taskType": "authentication", "apiKey": "any"}])
        socket.receive_json()
        socket.send_json([checked_task()])
        assert socket.receive_json()["errors"][0]["code"] == "internalServerError"
        socket.send_json([{"taskType": "ping"}])
        assert socket.receive_json()["data"][0]["pong"]
    assert statuses(settings) == ["error"]


def test_a_bug_ends_a_polled_task_with_an_error(faulty: TestClient, settings: Settings) -> None:
    task = checked_task(deliveryMethod="async", numberResults=2)
    assert "errors" not in faulty.post("/v1", json=[task]).json()
    wait_until(lambda: not tasks_of(faulty).num_running_tasks)
    (error,) = poll(faulty, task)["errors"]
    assert (error["code"], error["status"]) == ("internalServerError", "error")
    assert statuses(settings) == ["error"]


def test_a_bug_makes_one_webhook_call(faulty: TestClient, listener: Listener) -> None:
    task = checked_task(webhookURL=f"{listener.url}/hook", numberResults=2)
    faulty.post("/v1", json=[task])
    second = checked_task(webhookURL=f"{listener.url}/hook")
    wait_until(lambda: len(listener.received) == 1)
    faulty.post("/v1", json=[second])
    wait_until(lambda: len(listener.received) == 2)
    bodies = [call[3] for call in listener.received]
    assert [body.count(b"internalServerError") for body in bodies] == [1, 1]
    assert task["taskUUID"].encode() in bodies[0]
    assert second["taskUUID"].encode() in bodies[1]


def test_a_task_that_cannot_be_ended_in_the_store_is_ended_when_the_store_works_again(
    client: TestClient, settings: Settings, engine: FakeEngine
) -> None:
    database = settings.tasks.database_url.removeprefix("sqlite:///")
    engine.is_held, engine.failure = True, ("inferenceError", "it did not work")
    task = make_task(deliveryMethod="async")
    client.post("/v1", json=[task])
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("ALTER TABLE tasks RENAME TO hidden")
    engine.is_held = False
    wait_until(lambda: not tasks_of(client).num_running_tasks)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("ALTER TABLE hidden RENAME TO tasks")
    wait_until(lambda: statuses(settings) == ["error"])
    assert poll(client, task)["errors"][0]["code"] == "inferenceError"


@pytest.mark.parametrize("form", ["base64Data", "dataURI"])
def test_a_waiting_client_gets_the_bytes_although_the_store_cannot_be_read(
    settings: Settings, engine: FakeEngine, form: str
) -> None:
    images = UnreadableStore(settings.images.store)
    with TestClient(create_app(settings, engine, images=images)) as client:
        task = make_task(outputType=form, numberResults=2)
        response = client.post("/v1", json=[task])
    assert response.status_code == 200
    assert len(response.json()["data"]) == 2
