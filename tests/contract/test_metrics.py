"""What `/metrics` counts, and that its labels stay few."""

import re
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from server.app import create_app
from server.engine.messages import MemoryReading
from server.engine.protocol import EngineFigures
from server.settings import Settings
from tests.contract.conftest import FakeEngine, ask, change, make_task, state_of
from tests.contract.measured_engine import MeasuredEngine
from tests.listener import Listener
from tests.waiting import wait_until

MIB = 2**20


def value(client: TestClient, name: str, **labels: str) -> float:
    """Return a sample of the page, 0 for one that is not there yet."""
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return 0.0


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture
def measured(settings: Settings) -> Iterator[TestClient]:
    app: Any = create_app(settings, MeasuredEngine())
    with TestClient(app) as client:
        client.post("/v1", json=[make_task(numberResults=2, steps=3)])
        yield client


def test_images_pixels_steps_and_evaluations_of_a_task_are_counted(measured: TestClient) -> None:
    assert value(measured, "hyimage_images_total") == 2
    assert value(measured, "hyimage_megapixels_total") == 1.0
    assert value(measured, "hyimage_steps_total", kind="computed") == 4
    assert value(measured, "hyimage_steps_total", kind="reused") == 2
    assert value(measured, "hyimage_evaluations_total", kind="computed") == 4
    assert value(measured, "hyimage_evaluations_total", kind="reused") == 2


@pytest.mark.parametrize(
    ("stage", "count", "seconds"),
    [
        ("text", 2, 6.0),
        ("prefill", 2, 0.5),
        ("step", 6, 3.0),
        ("decode", 2, 0.25),
        ("encode", 2, 0.125),
        ("upload", 0, 0.0),
        ("check", 0, 0.0),
        ("webhook", 0, 0.0),
    ],
)
def test_the_seconds_of_a_stage_are_those_that_the_worker_reports(
    measured: TestClient, stage: str, count: int, seconds: float
) -> None:
    assert value(measured, "hyimage_stage_seconds_count", stage=stage) == count
    assert value(measured, "hyimage_stage_seconds_sum", stage=stage) == seconds


def test_storing_is_timed_for_each_file_each_row_and_the_end(measured: TestClient) -> None:
    assert value(measured, "hyimage_stage_seconds_count", stage="store") == 5
    assert value(measured, "hyimage_stage_seconds_sum", stage="store") > 0


def test_a_task_is_timed_from_its_acceptance(measured: TestClient) -> None:
    assert value(measured, "hyimage_tasks_total", end="success") == 1
    assert value(measured, "hyimage_queue_wait_seconds_count") == 1
    assert value(measured, "hyimage_task_seconds_count") == 1
    waited = value(measured, "hyimage_queue_wait_seconds_sum")
    assert 0 < waited < value(measured, "hyimage_task_seconds_sum")


def test_a_refused_task_counts_as_refusal_and_as_error(client: TestClient) -> None:
    client.post("/v1", json=[make_task(model="other"), make_task(steps=0)])
    assert value(client, "hyimage_refusals_total", code="invalidModel") == 1
    assert value(client, "hyimage_errors_total", code="invalidModel") == 1
    assert value(client, "hyimage_errors_total", code="invalidSteps") == 1
    assert value(client, "hyimage_tasks_total", end="invalidModel") == 0


def test_a_failed_task_counts_by_its_code_and_its_polls_do_not(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.failure = ("inferenceError", "died")
    task = make_task(deliveryMethod="async")
    client.post("/v1", json=[task])
    poll = {"taskType": "getResponse", "taskUUID": task["taskUUID"]}
    wait_until(lambda: bool(client.post("/v1", json=[poll]).json().get("errors")))
    client.post("/v1", json=[poll])
    assert value(client, "hyimage_tasks_total", end="inferenceError") == 1
    assert value(client, "hyimage_errors_total", code="inferenceError") == 0
    assert value(client, "hyimage_task_seconds_count") == 0
    client.post("/v1", json=[make_task()])  # whoever waits for its answer gets the error
    assert value(client, "hyimage_errors_total", code="inferenceError") == 1


def test_every_way_to_answer_an_error_counts_it(client: TestClient) -> None:
    client.post("/v1", content=b"{")
    client.get("/nowhere")
    client.post("/v1/images/generations", json={})
    client.get("/v1/models/none")
    client.delete(f"/v1/tasks/{uuid.uuid4()}")
    with client.websocket_connect("/v1") as socket:
        ask(socket, {"taskType": "ping"})
    wanted = {
        "invalidJSON": 1, "unknownPath": 1, "missing_required_parameter": 1, "modelNotFound": 1,
        "taskFailedOrNotFound": 1, "missingApiKey": 1,
    }  # fmt: skip
    assert {code: value(client, "hyimage_errors_total", code=code) for code in wanted} == wanted


def test_tasks_that_wait_and_that_run_are_told_apart(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.is_held = True
    client.post("/v1", json=[make_task(deliveryMethod="async", numberResults=3)])
    assert value(client, "hyimage_queued_tasks") == 1
    assert value(client, "hyimage_running_tasks") == 0
    assert value(client, "hyimage_unfinished_images") == 3
    assert value(client, "hyimage_unfinished_images_limit") == 25
    for running in state_of(client).tasks.running.values():
        running.position = 0  # what JobStarted does
    assert value(client, "hyimage_queued_tasks") == 0
    assert value(client, "hyimage_running_tasks") == 1
    engine.is_held = False
    wait_until(lambda: value(client, "hyimage_unfinished_images") == 0)


def test_requests_are_counted_by_route_and_class_of_status(client: TestClient) -> None:
    for path in ("/v1/models", "/v1/models/none", f"/v1/tasks/{uuid.uuid4()}/events", "/secret"):
        client.get(path)
    client.post("/v1", json=[make_task()])
    client.post("/v1/", json=[make_task()])
    counted = {
        (route, status): value(client, "hyimage_http_requests_total", route=route, status=status)
        for route, status in (
            ("/v1/models", "2xx"), ("/v1/models/{model_id}", "4xx"), ("other", "4xx"),
            ("/v1/tasks/{task_uuid}/events", "4xx"), ("/v1", "2xx"),
        )
    }  # fmt: skip
    assert list(counted.values()) == [1, 1, 1, 1, 2]
    assert value(client, "hyimage_http_request_seconds_count", route="/v1") == 2


def test_frames_and_ends_of_sockets_are_counted(client: TestClient) -> None:
    with client.websocket_connect("/v1") as socket:
        ask(socket, {"taskType": "authentication"}, {"taskType": "ping"})
        socket.receive_json()
        assert value(client, "hyimage_websocket_sessions") == 1
        socket.close(1001)
    with client.websocket_connect("/v1") as socket:
        socket.close(4321)
    wait_until(lambda: value(client, "hyimage_websocket_closes_total", code="other") == 1)
    assert value(client, "hyimage_websocket_closes_total", code="1001") == 1
    assert value(client, "hyimage_websocket_frames_total", direction="received") == 1
    assert value(client, "hyimage_websocket_frames_total", direction="sent") == 2
    assert value(client, "hyimage_websocket_sessions") == 0


def test_worker_deaths_and_memory_are_the_engines(client: TestClient, engine: FakeEngine) -> None:
    engine.figures = EngineFigures(3, (MemoryReading("cuda:0", "peak", 5 * MIB),))
    engine.figures = replace(engine.figures, resident_bytes=7 * MIB)
    assert value(client, "hyimage_worker_deaths_total") == 3
    memory = "hyimage_worker_memory_bytes"
    assert value(client, memory, device="cuda:0", kind="peak") == 5 * MIB
    assert value(client, memory, device="host", kind="resident") == 7 * MIB


def test_calls_of_the_store_are_timed(client: TestClient) -> None:
    before = value(client, "hyimage_store_seconds_count", operation="write")
    client.post("/v1", json=[make_task()])
    # The task, its image, its end; the sweep of expired ones may come between.
    assert value(client, "hyimage_store_seconds_count", operation="write") - before in (3, 4)
    assert value(client, "hyimage_store_faults_total", operation="write") == 0


def test_webhooks_are_counted_until_they_are_answered(
    settings: Settings, engine: FakeEngine, listener: Listener
) -> None:
    settings = change(settings, egress__allowed_networks=("127.0.0.0/8",), egress__webhook_tries=2)
    with TestClient(create_app(settings, engine)) as client:
        client.post("/v1", json=[make_task(webhookURL=listener.url)])
        wait_until(lambda: value(client, "hyimage_webhook_tries_total", outcome="answered") == 1)
        wait_until(lambda: value(client, "hyimage_webhook_backlog") == 0)
        assert value(client, "hyimage_stage_seconds_count", stage="webhook") == 1
        listener.num_failures = 2
        client.post("/v1", json=[make_task(webhookURL=listener.url)])
        wait_until(lambda: value(client, "hyimage_webhooks_given_up_total") == 1)
        assert value(client, "hyimage_webhook_tries_total", outcome="failed") == 2


def test_no_label_holds_what_a_client_sent(client: TestClient) -> None:
    marks = [uuid.uuid4().hex[:12] for _ in range(4)]
    client.get(f"/{marks[0]}")
    client.request("BREW", f"/v1/tasks/{marks[1]}")
    client.post("/v1", json=[make_task(positivePrompt=marks[2]), make_task(model=marks[3])])
    client.post(
        "/v1", json=[{"taskType": marks[0]}], headers={"Authorization": f"Bearer {marks[1]}"}
    )
    page = client.get("/metrics").text
    assert [mark for mark in marks if mark in page] == []
    assert re.search(r"[0-9a-f]{8}-[0-9a-f]{4}", page) is None
