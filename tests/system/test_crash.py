"""What was accepted is finished, once, whatever dies in between. Real processes and signals."""

import base64
import json
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.listener import Listener
from tests.system.conftest import ServerProcess
from tests.waiting import wait_until

pytestmark = pytest.mark.slow


def make_task(**changes: Any) -> dict[str, Any]:
    return {
        "taskType": "imageInference",
        "taskUUID": str(uuid.uuid4()),
        "model": "runware:180@1",
        "positivePrompt": "a red fox",
        "width": 256,
        "height": 256,
        "steps": 4,
        "outputFormat": "PNG",
        **changes,
    }


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture
def server(server_factory: Callable[..., ServerProcess], tiny_checkpoint: Path) -> ServerProcess:
    server = server_factory(
        tiny_checkpoint,
        HYIMAGE_EGRESS__ALLOWED_NETWORKS='["127.0.0.0/8"]',
        HYIMAGE_SERVER__DRAIN_S="0",  # so that SIGTERM leaves something to do
    )
    server.start()
    return server


def no_calls_are_left(server: ServerProcess) -> bool:
    """Return whether every webhook call is made: those that are due stand in the store."""
    return server.rows("SELECT count(*) FROM webhooks") == [(0,)]


def images(server: ServerProcess, items: list[dict[str, Any]]) -> list[bytes]:
    return [server.get(item["imageURL"])[0] for item in items]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_accepted_tasks_finish_after_a_restart_with_the_same_pixels(
    server: ServerProcess, how: signal.Signals
) -> None:
    task = make_task(deliveryMethod="async", numberResults=2, seed=5, steps=15)
    assert server.post(task)["data"] == [
        {"taskType": "imageInference", "taskUUID": task["taskUUID"]}
    ]
    server.stop(how)
    server.start()
    assert server.post(task)["errors"][0]["code"] == "conflictTaskUUID"
    items = server.wait_for(task["taskUUID"])
    again = server.post({**task, "taskUUID": str(uuid.uuid4()), "deliveryMethod": "sync"})
    assert [item["seed"] for item in items] == [item["seed"] for item in again["data"]] == [5, 6]
    assert images(server, items) == images(server, again["data"])


def test_a_killed_worker_costs_a_client_only_time(server: ServerProcess) -> None:
    answers: list[dict[str, Any]] = []
    task = make_task(numberResults=2, steps=20, seed=1)
    client = threading.Thread(target=lambda: answers.append(server.post(task)))
    client.start()
    poll = {"taskType": "getResponse", "taskUUID": task["taskUUID"]}
    wait_until(lambda: bool(server.post(poll)["data"]))
    for pid in server.children():
        if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)
    client.join(timeout=120)
    assert [item["seed"] for item in answers[0]["data"]] == [1, 2]


def test_a_webhook_hears_of_each_image_once(server: ServerProcess, listener: Listener) -> None:
    listener.num_failures = 2
    task = make_task(numberResults=3, webhookURL=f"{listener.url}/hook?secret=a%2Fb", seed=1)
    assert server.post(task)["data"] == [
        {"taskType": "imageInference", "taskUUID": task["taskUUID"]}
    ]
    listener.wait_for(3)
    wait_until(lambda: no_calls_are_left(server))
    assert len(listener.received) == 3
    assert {heard[:3] for heard in listener.received} == {
        ("POST", "/hook?secret=a%2Fb", "application/json")
    }
    items = [json.loads(body)["data"] for *_, body in listener.received]
    assert sorted(item["seed"] for (item,) in items) == [1, 2, 3]


def test_a_webhook_that_could_not_be_made_is_made_after_a_restart(
    server: ServerProcess, listener: Listener
) -> None:
    listener.num_failures = 10**6
    task = make_task(webhookURL=f"{listener.url}/hook")
    server.post(task)
    server.wait_for(task["taskUUID"])
    server.stop()
    listener.num_failures = 0
    server.start()
    (heard,) = listener.wait_for(1)
    assert json.loads(heard[3])["data"][0]["taskUUID"] == task["taskUUID"]
    wait_until(lambda: no_calls_are_left(server))
    server.stop()
    server.start()
    second = make_task(webhookURL=f"{listener.url}/hook")
    server.post(second)
    (_, heard) = listener.wait_for(2)
    assert json.loads(heard[3])["data"][0]["taskUUID"] == second["taskUUID"]


def test_an_upload_gets_the_bytes_of_the_image(server: ServerProcess, listener: Listener) -> None:
    task = make_task(uploadEndpoint=f"{listener.url}/put?signature=x", outputType="base64Data")
    (item,) = server.post(task)["data"]
    (heard,) = listener.wait_for(1)
    assert heard[:3] == ("PUT", "/put?signature=x", "image/png")
    assert heard[3] == base64.b64decode(item["imageBase64Data"])


def test_a_failed_upload_is_reported_beside_its_image(
    server: ServerProcess, listener: Listener
) -> None:
    listener.num_failures = 10**6
    answer = server.post(make_task(uploadEndpoint=f"{listener.url}/put"))
    (item,), (error,) = answer["data"], answer["errors"]
    assert error["code"] == "uploadFailed"
    assert error["imageUUIDs"] == [item["imageUUID"]]
