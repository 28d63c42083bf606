"""Webhooks and uploads: refused targets, tries, bodies, and images whose upload failed."""

import json
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from server.app import create_app
from server.settings import Settings
from tests.contract.conftest import FakeEngine, change, make_task, refusal, tasks_of
from tests.listener import Listener
from tests.waiting import wait_until


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture
def reachable(settings: Settings) -> Settings:
    return change(settings, egress__allowed_networks=("127.0.0.0/8",))


@pytest.fixture
def open_client(reachable: Settings, engine: FakeEngine) -> Iterator[TestClient]:
    """A server that may reach loopback."""
    with TestClient(create_app(reachable, engine)) as client:
        yield client


@pytest.mark.parametrize(
    ("parameter", "code"),
    [("webhookURL", "invalidWebhookURL"), ("uploadEndpoint", "invalidUploadEndpoint")],
)
@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", "[64:ff9b::a9fe:a9fe]"])
def test_a_closed_target_is_refused_at_once_and_the_setting_is_named(
    client: TestClient, engine: FakeEngine, parameter: str, code: str, host: str
) -> None:
    error = refusal(client, **{parameter: f"http://{host}/x"})
    assert (error["code"], error["parameter"]) == (code, parameter)
    assert "egress.allowed_networks" in error["message"]
    assert engine.jobs == []


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_an_upload_is_tried_again_after_an_answer_that_may_differ_next_time(
    open_client: TestClient, listener: Listener, status: int
) -> None:
    listener.num_failures, listener.failure_status = 1, status
    answer = open_client.post("/v1", json=[make_task(uploadEndpoint=f"{listener.url}/a")]).json()
    assert "errors" not in answer
    assert len(listener.received) == 1


def test_an_upload_that_is_refused_is_not_tried_again(
    open_client: TestClient, listener: Listener
) -> None:
    listener.num_failures, listener.failure_status = 1, 403
    answer = open_client.post("/v1", json=[make_task(uploadEndpoint=f"{listener.url}/a")]).json()
    assert answer["errors"][0]["code"] == "uploadFailed"
    assert listener.received == []


def test_images_whose_upload_failed_are_told_beside_the_others(
    open_client: TestClient, listener: Listener
) -> None:
    listener.num_failures, listener.failure_status = 1, 403
    task = make_task(uploadEndpoint=f"{listener.url}/a", numberResults=3, seed=1)
    response = open_client.post("/v1", json=[task])
    answer = response.json()
    assert response.status_code == 200
    assert [item["seed"] for item in answer["data"]] == [1, 2, 3]
    (error,) = answer["errors"]
    assert (error["code"], error["taskUUID"]) == ("uploadFailed", task["taskUUID"])
    assert error["imageUUIDs"] == [answer["data"][0]["imageUUID"]]
    assert [body for *_, body in listener.received] == [b"image 2", b"image 3"]
    assert open_client.get(answer["data"][0]["imageURL"]).content == b"image 1"
    polled = open_client.post(
        "/v1", json=[{"taskType": "getResponse", "taskUUID": task["taskUUID"]}]
    ).json()
    assert polled["errors"][0]["imageUUIDs"] == error["imageUUIDs"]


def test_a_webhook_learns_of_a_failed_upload_after_its_image(
    open_client: TestClient, listener: Listener
) -> None:
    listener.num_failures, listener.failure_status = 1, 403
    task = make_task(uploadEndpoint=f"{listener.url}/a", webhookURL=f"{listener.url}/hook")
    open_client.post("/v1", json=[task])
    bodies = [json.loads(body) for *_, body in listener.wait_for(2)]
    assert sorted(key for body in bodies for key in body) == ["data", "errors"]


@pytest.mark.parametrize(
    ("query", "is_azure"),
    [("sv=2024-11-04&sr=b&sig=a%2Fb", True), ("X-Amz-Signature=a", False)],
)
def test_an_azure_url_gets_the_blob_type_it_needs(
    open_client: TestClient, listener: Listener, query: str, is_azure: bool
) -> None:
    open_client.post("/v1", json=[make_task(uploadEndpoint=f"{listener.url}/a?{query}")])
    (headers,) = listener.headers
    assert (headers.get("x-ms-blob-type") == "BlockBlob") is is_azure


def test_a_flat_webhook_is_the_item_itself(
    reachable: Settings, engine: FakeEngine, listener: Listener
) -> None:
    flat = change(reachable, egress__webhook_body="flat")
    with TestClient(create_app(flat, engine)) as client:
        task = make_task(webhookURL=f"{listener.url}/hook", seed=4)
        client.post("/v1", json=[task])
        body = json.loads(listener.wait_for(1)[0][3])
        assert (body["taskUUID"], body["seed"]) == (task["taskUUID"], 4)
        engine.failure = ("inferenceError", "it did not work")
        client.post("/v1", json=[make_task(webhookURL=f"{listener.url}/hook")])
        assert json.loads(listener.wait_for(2)[1][3])["code"] == "inferenceError"
        wait_until(lambda: not tasks_of(client).num_running_tasks)


def test_a_webhook_is_called_again_within_a_second(
    open_client: TestClient, listener: Listener
) -> None:
    listener.num_failures = 2
    open_client.post("/v1", json=[make_task(webhookURL=f"{listener.url}/hook")])
    assert (
        len(listener.wait_for(1, timeout_s=3)) == 1
    )  # 0.25 s and 0.5 s, each up to a quarter more
