"""Progress on a socket and in the OpenAI form; what happens when a client hangs up."""

import base64
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from server.engine.messages import Job, JobEvent, JobStarted, JobStep
from server.settings import Settings
from tests.contract.conftest import FakeEngine, ask, change, make_task, refusal, state_of, tasks_of
from tests.contract.test_cancel_and_events import parse
from tests.waiting import wait_until


def four_steps(job: Job) -> list[JobEvent]:
    steps: list[JobEvent] = [
        JobStep(job_id=job.job_id, image=0, step=step, num_steps=4, preview=b"%d" % step)
        for step in range(1, 5)
    ]
    return [JobStarted(job_id=job.job_id, has_previews=True), *steps]


def test_a_socket_gets_progress_only_where_the_task_asks_for_it(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.story = four_steps
    task = make_task(steps=4, reportProgress=True)
    with client.websocket_connect("/v1") as socket:
        ask(socket, {"taskType": "authentication", "apiKey": "any"})
        frames = [ask(socket, task)]
        while frames[-1]["data"][0]["taskType"] != "imageInference":
            frames.append(socket.receive_json())
        plain = ask(socket, make_task(steps=4))
    items = [frame["data"][0] for frame in frames]
    assert {item["taskUUID"] for item in items} == {task["taskUUID"]}
    assert [item.get("event") for item in items] == ["started", *["step"] * 4, None]
    assert [item["progress"] for item in items[1:5]] == [25, 50, 75, 99]
    assert set(items[-1]) == set(plain["data"][0])
    assert plain["data"][0]["taskType"] == "imageInference"


def test_progress_of_an_asynchronous_task_ends_without_its_images(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.failure = ("inferenceError", "died")
    task = make_task(deliveryMethod="async", reportProgress=True)
    with client.websocket_connect("/v1") as socket:
        ask(socket, {"taskType": "authentication", "apiKey": "any"})
        acknowledged = ask(socket, task)
        failed = socket.receive_json()
    assert acknowledged["data"] == [{"taskType": "imageInference", "taskUUID": task["taskUUID"]}]
    assert failed["errors"][0]["code"] == "inferenceError"


def test_progress_over_http_is_refused_with_the_way_that_works(client: TestClient) -> None:
    error = refusal(client, reportProgress=True)
    assert error["code"] == "unsupportedParameter"
    assert "/events" in error["message"]


@pytest.mark.parametrize(
    ("count", "steps"), [(0, []), (1, [b"2"]), (2, [b"1", b"2"]), (3, [b"1", b"2", b"3"])]
)
def test_the_openai_form_streams_partial_images_spread_over_the_steps(
    client: TestClient, engine: FakeEngine, count: int, steps: list[bytes]
) -> None:
    engine.story = four_steps
    body = {"prompt": "a red fox", "stream": True, "partial_images": count, "steps": 4}
    response = client.post("/v1/images/generations", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    got = [(kind, values) for _, kind, values in parse(response.text)]
    *partial, (last, completed) = got
    assert last == completed["type"] == "image_generation.completed"
    assert base64.b64decode(completed["b64_json"]).startswith(b"image")
    assert "x" in completed["size"]
    assert [base64.b64decode(values["b64_json"]) for _, values in partial] == steps
    assert [values["partial_image_index"] for _, values in partial] == list(range(count))
    assert {kind for kind, _ in partial} <= {"image_generation.partial_image"}


def test_a_streamed_failure_is_an_error_event_and_a_refusal_has_its_status(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.failure = ("inferenceError", "died")
    body = {"prompt": "a red fox", "stream": True}
    (event,) = parse(client.post("/v1/images/generations", json=body).text)
    assert event[1] == "error"
    assert event[2]["error"]["type"] == "server_error"
    refused = client.post("/v1/images/generations", json={**body, "size": "3x3"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "size"


def test_a_stream_of_urls_is_refused(client: TestClient) -> None:
    body = {"prompt": "a red fox", "stream": True, "response_format": "url"}
    error = client.post("/v1/images/generations", json=body).json()["error"]
    assert error["param"] == "response_format"


def test_partial_images_without_a_stream_are_refused(client: TestClient) -> None:
    body = {"prompt": "a red fox", "partial_images": 2}
    error = client.post("/v1/images/generations", json=body).json()["error"]
    assert error["param"] == "partial_images"
    assert "stream" in error["message"]


@pytest.mark.parametrize(("setting", "is_cancelled"), [("always", True), ("openai", False)])
def test_a_socket_that_goes_takes_its_tasks_along_only_if_set_so(
    settings: Settings,
    engine: FakeEngine,
    new_client: Callable[..., TestClient],
    setting: str,
    is_cancelled: bool,
) -> None:
    client = new_client(change(settings, server__cancel_on_disconnect=setting), engine)
    engine.is_held = True
    task: dict[str, Any] = make_task()
    with client.websocket_connect("/v1") as socket:
        ask(socket, {"taskType": "authentication", "apiKey": "any"})
        socket.send_text(json.dumps([task]))
        wait_until(lambda: bool(engine.jobs))
    if is_cancelled:
        wait_until(lambda: tasks_of(client).num_running_tasks == 0)
        assert task["taskUUID"] in engine.cancelled
    else:
        engine.is_held = False
        wait_until(lambda: tasks_of(client).num_running_tasks == 0)
        poll = {"taskType": "getResponse", "taskUUID": task["taskUUID"]}
        assert client.post("/v1", json=[poll]).json()["data"][0]["status"] == "success"


def test_a_task_whose_client_goes_while_it_is_stored_is_forgotten(
    settings: Settings, engine: FakeEngine, new_client: Callable[..., TestClient]
) -> None:
    client = new_client(change(settings, server__cancel_on_disconnect="always"), engine)
    is_open = threading.Event()
    assert client.portal is not None
    client.portal.start_task_soon(state_of(client).store.write, lambda _: is_open.wait())
    task: dict[str, Any] = make_task()
    with client.websocket_connect("/v1") as socket:
        ask(socket, {"taskType": "authentication", "apiKey": "any"})
        socket.send_text(json.dumps([task]))
        wait_until(lambda: tasks_of(client).num_running_tasks == 1)
    wait_until(lambda: tasks_of(client).num_running_tasks == 0)
    is_open.set()
    client.post("/v1", json=[make_task()])  # its write comes after those of before
    poll = {"taskType": "getResponse", "taskUUID": task["taskUUID"]}
    assert client.post("/v1", json=[poll]).json()["errors"][0]["code"] == "taskFailedOrNotFound"
    assert task["taskUUID"] not in [job.job_id for job in engine.jobs]
