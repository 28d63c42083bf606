"""Log lines: each carries the id of the request that it is about."""

import logging
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from server.app import create_app
from server.process import add_request_id
from server.settings import Settings
from tests.contract.conftest import FakeEngine, make_task, tasks_of
from tests.waiting import wait_until

ID = {"X-Request-ID": "request-1"}


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The log, with what the filter of every process adds to its records."""
    caplog.set_level(logging.INFO)
    caplog.handler.addFilter(add_request_id)
    yield caplog
    caplog.handler.removeFilter(add_request_id)


def ids_of(lines: pytest.LogCaptureFixture, text: str) -> list[str]:
    """Return the request ids of the lines that hold a text."""
    return [str(line.__dict__["request_id"]) for line in lines.records if text in line.getMessage()]


def test_a_request_has_one_line_with_its_id(
    client: TestClient, lines: pytest.LogCaptureFixture
) -> None:
    client.post("/v1", json=[make_task(steps=0)], headers=ID)
    assert ids_of(lines, "request id=request-1 method=POST path=/v1 status=400") == ["request-1"]


def test_a_socket_has_one_line_with_its_id_and_its_close_code(
    client: TestClient, lines: pytest.LogCaptureFixture
) -> None:
    with client.websocket_connect("/v1", headers=ID) as socket:
        socket.close(1001)
    wait_until(lambda: bool(ids_of(lines, "socket id=")))
    assert ids_of(lines, "socket id=request-1 method=GET path=/v1 status=1001") == ["request-1"]


@pytest.mark.parametrize("delivery", ["sync", "async"])
def test_the_lines_of_a_task_carry_the_id_of_the_request_that_brought_it(
    client: TestClient, engine: FakeEngine, lines: pytest.LogCaptureFixture, delivery: str
) -> None:
    engine.fault = KeyError("a bug")
    task = make_task(deliveryMethod=delivery)
    client.post("/v1", json=[task], headers=ID)
    wait_until(lambda: not tasks_of(client).num_running_tasks)
    assert ids_of(lines, f"task {task['taskUUID']} failed") == ["request-1"]
    assert [job.request_id for job in engine.jobs] == ["request-1"]


def test_a_task_from_before_a_restart_keeps_the_id_of_its_request(
    settings: Settings, engine: FakeEngine, lines: pytest.LogCaptureFixture
) -> None:
    engine.is_held = True
    task = make_task(deliveryMethod="async")
    with TestClient(create_app(settings, engine)) as client:
        client.post("/v1", json=[task], headers=ID)
    second = FakeEngine()
    second.fault = KeyError("a bug")
    with TestClient(create_app(settings, second)) as client:
        wait_until(lambda: not tasks_of(client).num_running_tasks)
    assert ids_of(lines, f"task {task['taskUUID']} failed") == ["request-1"]


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_a_probe_has_its_line_at_debug_level_alone(
    client: TestClient, lines: pytest.LogCaptureFixture, path: str
) -> None:
    lines.set_level(logging.DEBUG)
    client.get(path)
    client.get("/images/none.png")
    levels = {
        line.getMessage().partition("path=")[2].split()[0]: line.levelno
        for line in lines.records
        if "path=" in line.getMessage()
    }
    assert levels == {path: logging.DEBUG, "/images/none.png": logging.INFO}
