"""API keys on both transports: where they are taken from, and what they keep apart."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from server.app import create_app
from server.settings import Settings
from server.tasks.key_file import add_key
from tests.contract.conftest import FakeEngine, ask, make_task


@pytest.fixture
def locked(settings: Settings, engine: FakeEngine) -> Iterator[tuple[TestClient, str, str]]:
    """A server with two keys; yields a client and the keys."""
    file = Path(settings.keys.file)
    ours, other = add_key(file, "ours"), add_key(file, "other")
    with TestClient(create_app(settings, engine)) as client:
        yield client, ours, other


def test_a_wrong_key_is_refused_as_clients_expect_it(locked: tuple[TestClient, str, str]) -> None:
    client, _, _ = locked
    with client.websocket_connect("/v1") as socket:
        frame = ask(socket, {"taskType": "authentication", "apiKey": "wrong"})
        assert frame["error"] == frame["errors"][0]
        error = frame["error"]
        assert (error["code"], error["taskType"]) == ("invalidApiKey", "authentication")
        assert "taskUUID" not in error


def test_http_takes_a_key_from_the_header_or_the_first_task(
    locked: tuple[TestClient, str, str],
) -> None:
    client, key, _ = locked
    header = {"Authorization": f"Bearer {key}"}
    assert client.post("/v1", json=[make_task()], headers=header).status_code == 200
    first = {"taskType": "authentication", "apiKey": key}
    answer = client.post("/v1", json=[first, make_task()])
    assert (answer.status_code, len(answer.json()["data"])) == (200, 1)
    for tasks, code in (
        ([make_task()], "missingApiKey"),
        ([{**first, "apiKey": "wrong"}, make_task()], "invalidApiKey"),
    ):
        refused = client.post("/v1", json=tasks)
        assert refused.status_code == 401
        assert refused.json()["errors"][0]["code"] == code
        assert "taskUUID" not in refused.json()["errors"][0]


def test_one_key_does_not_see_the_tasks_of_another(locked: tuple[TestClient, str, str]) -> None:
    client, ours, other = locked
    task = make_task()
    client.post("/v1", json=[task], headers={"Authorization": f"Bearer {ours}"})
    poll = [{"taskType": "getResponse", "taskUUID": task["taskUUID"]}]
    for key, status in ((ours, 200), (other, 404)):
        answer = client.post("/v1", json=poll, headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == status


def test_a_second_authentication_is_an_error_beside_the_results(client: TestClient) -> None:
    task, extra = make_task(), {"taskType": "authentication", "apiKey": "another"}
    for tasks in ([extra, extra, task], [task, extra], [extra, task, extra]):
        response = client.post("/v1", json=[{**one} for one in tasks])
        assert response.status_code == 200
        (item,) = response.json()["data"]
        assert item["taskUUID"] == task["taskUUID"]
        (error,) = response.json()["errors"]
        assert error["code"] == "unsupportedAuthentication"
        assert error["taskType"] == "authentication"
        task["taskUUID"] = str(uuid.uuid4())
