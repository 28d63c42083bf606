"""Usage and quotas of keys, as clients see them, from the store."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from server.app import create_app
from server.settings import Settings
from server.tasks.key_file import add_key, change_key, remove_key
from tests.contract.conftest import FakeEngine, ask, make_task, tasks_of
from tests.waiting import wait_until

DETAILS = {"taskType": "accountManagement", "operation": "getDetails"}


class KeyedClient:
    """A client with a key."""

    def __init__(self, client: TestClient, key: str) -> None:
        self.client = client
        self.headers = {"Authorization": f"Bearer {key}"}

    def post(self, *tasks: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        response = self.client.post("/v1", json=list(tasks), headers=self.headers)
        return response.status_code, response.json()

    def usage(self) -> dict[str, Any]:
        _, body = self.post(DETAILS)
        item: dict[str, Any] = body["data"][0]
        return item


@pytest.fixture
def keyed(settings: Settings, engine: FakeEngine) -> Iterator[KeyedClient]:
    """A client with a key for four images a day, and a server with another key."""
    file = Path(settings.keys.file)
    key = add_key(file, "ours", images_per_day=4, weight=2.5)
    add_key(file, "other")
    with TestClient(create_app(settings, engine)) as client:
        yield KeyedClient(client, key)


def test_an_account_has_the_usage_of_the_key_alone(keyed: KeyedClient, settings: Settings) -> None:
    other = KeyedClient(keyed.client, add_key(Path(settings.keys.file), "third"))
    _, body = keyed.post(make_task(includeCost=True, numberResults=2), make_task(includeCost=True))
    cost = sum(item["cost"] for item in body["data"])
    keyed.post(make_task(steps=0))  # refused: not counted
    item = keyed.usage()
    expected = {"credits": pytest.approx(cost), "requests": 2, "images": 3}
    assert item["usage"] == dict.fromkeys(("total", "today", "last7Days", "last30Days"), expected)
    assert item["apiKeys"] == [{"name": "ours", "expires": None, "imagesPerDay": 4}]
    assert other.usage()["usage"]["total"] == {"credits": 0, "requests": 0, "images": 0}


def test_usage_outlives_a_restart_and_its_tasks(
    keyed: KeyedClient, settings: Settings, engine: FakeEngine
) -> None:
    keyed.post(make_task())
    with TestClient(create_app(settings, engine)) as again:
        keyed.client = again
        assert keyed.usage()["usage"]["today"]["images"] == 1


def test_a_quota_counts_what_is_finished_and_what_is_running(
    keyed: KeyedClient, engine: FakeEngine
) -> None:
    assert keyed.post(make_task())[0] == 200
    engine.is_held = True
    assert keyed.post(make_task(numberResults=2, deliveryMethod="async"))[0] == 200
    status, body = keyed.post(make_task(numberResults=2))
    (error,) = body["errors"]
    assert (status, error["code"], error["parameter"]) == (403, "quotaExceeded", "apiKey")
    assert "4 images a day; 3 are generated or running, and this task has 2" in error["message"]
    engine.is_held = False
    wait_until(lambda: not tasks_of(keyed.client).num_running_tasks)
    assert keyed.post(make_task())[0] == 200
    assert keyed.post(make_task())[0] == 403
    assert keyed.usage()["usage"]["today"]["images"] == 4


def test_the_openai_form_says_quota_as_its_clients_know_it(keyed: KeyedClient) -> None:
    response = keyed.client.post(
        "/v1/images/generations", json={"prompt": "a fox", "n": 5}, headers=keyed.headers
    )
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "insufficient_quota"


def test_a_failed_task_uses_no_quota(keyed: KeyedClient, engine: FakeEngine) -> None:
    engine.failure = ("inferenceError", "broken")
    for _ in range(3):
        assert keyed.post(make_task(numberResults=3))[0] == 500
    engine.failure = None
    assert keyed.post(make_task(numberResults=4))[0] == 200


def test_a_quota_that_is_raised_counts_at_once(keyed: KeyedClient, settings: Settings) -> None:
    assert keyed.post(make_task(numberResults=5))[0] == 403
    change_key(Path(settings.keys.file), "ours", images_per_day=5)
    assert keyed.post(make_task(numberResults=5))[0] == 200


def test_the_engine_gets_the_weight_of_the_key(keyed: KeyedClient, engine: FakeEngine) -> None:
    keyed.post(make_task())
    assert [(job.owner, job.weight) for job in engine.jobs] == [("ours", 2.5)]


def test_a_socket_whose_key_is_removed_gets_an_error_and_ends(
    settings: Settings, engine: FakeEngine
) -> None:
    file = Path(settings.keys.file)
    key = add_key(file, "ours")
    add_key(file, "other")
    app = create_app(settings, engine)
    with TestClient(app) as client, client.websocket_connect("/v1") as socket:
        ask(socket, {"taskType": "authentication", "apiKey": key})
        assert "data" in ask(socket, make_task())
        remove_key(file, "ours")
        task = make_task()
        (error,) = ask(socket, task)["errors"]
        assert error["code"] == "invalidApiKey"
        assert socket.receive()["type"] == "websocket.close"
    assert len(engine.jobs) == 1
