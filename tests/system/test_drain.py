"""SIGTERM drains a server: it refuses what is new and finishes what it has accepted."""

import contextlib
import http.client
import signal
import threading
import time
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.serve import SAME_SIGNAL_S
from tests.system.conftest import ServerProcess
from tests.system.test_crash import make_task
from tests.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def server(server_factory: Callable[..., ServerProcess], tiny_checkpoint: Path) -> ServerProcess:
    server = server_factory(tiny_checkpoint, HYIMAGE_SERVER__DRAIN_S="120")
    server.start()
    return server


def status_of_ready(server: ServerProcess) -> int:
    try:
        server.get("/ready")
    except urllib.error.HTTPError as e:
        return e.code
    return 200


def is_running(server: ServerProcess, task: dict[str, Any]) -> bool:
    poll = {"taskType": "getResponse", "taskUUID": task["taskUUID"]}
    return bool(server.post(poll)["data"])


def test_a_terminated_server_refuses_new_tasks_and_delivers_the_running_one(
    server: ServerProcess,
) -> None:
    answers: list[dict[str, Any]] = []
    task = make_task(numberResults=4, steps=100, seed=1, outputType="base64Data")
    client = threading.Thread(target=lambda: answers.append(server.post(task)))
    client.start()
    wait_until(lambda: is_running(server, task))
    assert server.process is not None
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: status_of_ready(server) == 503, timeout_s=5)
    refused = server.post(make_task())
    assert [error["code"] for error in refused["errors"]] == ["serviceUnavailable"]
    assert is_running(server, task)
    assert answers == []
    client.join(timeout=120)
    assert [item["seed"] for item in answers[0]["data"]] == [1, 2, 3, 4]
    assert server.process.wait(timeout=60) == 0
    assert server.rows("SELECT status FROM tasks") == [("success",)]


def test_a_later_signal_stops_a_draining_server_and_the_task_waits_in_the_store(
    server: ServerProcess,
) -> None:
    task = make_task(numberResults=20, steps=100, deliveryMethod="async")
    server.post(task)
    assert server.process is not None
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: status_of_ready(server) == 503, timeout_s=5)
    same_until = time.monotonic() + SAME_SIGNAL_S  # counted from when the server took the first one
    wait_until(lambda: time.monotonic() > same_until)
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(timeout=60)
    with pytest.raises((urllib.error.URLError, http.client.HTTPException)):
        server.get("/health")
    assert server.rows("SELECT status FROM tasks") == [("running",)]


def test_a_task_whose_client_waits_is_not_cancelled_by_a_server_that_stops(
    server_factory: Callable[..., ServerProcess], tiny_checkpoint: Path
) -> None:
    server = server_factory(tiny_checkpoint, HYIMAGE_SERVER__DRAIN_S="0")
    server.start()
    task = make_task(steps=100, numberResults=8, seed=1)

    def wait() -> None:
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            server.post(task)

    client = threading.Thread(target=wait)
    client.start()
    wait_until(lambda: is_running(server, task))
    server.stop(signal.SIGTERM)
    client.join(timeout=60)
    cancelled = server.rows("SELECT is_cancelled FROM tasks")
    assert cancelled in ([(None,)], [(0,)])
    server.start()
    assert len(server.wait_for(task["taskUUID"])) == 8
