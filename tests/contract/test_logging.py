"""Log lines: each carries the id of the request that it is about."""

import logging
from collections.abc import Callable, Iterator

import pytest
from fastapi.testclient import TestClient

from server.app import create_app
from server.logs import Fields
from server.process import add_request_id
from server.settings import Settings
from tests.contract.conftest import FakeEngine, ask, make_task, tasks_of
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


def fields_of(lines: pytest.LogCaptureFixture, event: str) -> list[dict[str, object]]:
    """Return the fields of the lines about an event."""
    found = [line.msg for line in lines.records if isinstance(line.msg, Fields)]
    return [dict(fields.values) for fields in found if fields.event == event]


def test_a_task_that_ended_has_one_line_with_its_figures(
    client: TestClient, lines: pytest.LogCaptureFixture
) -> None:
    task = make_task(numberResults=2, width=1344, height=704)
    client.post("/v1", json=[task], headers=ID)
    [fields] = fields_of(lines, "task")
    seconds = {name: fields.pop(name) for name in list(fields) if name.endswith("_s")}
    assert fields == {
        "uuid": task["taskUUID"], "key": "anybody", "outcome": "success", "size": "1344x704",
        "images": 2, "steps": 2, "reused": 0,
    }  # fmt: skip
    assert list(seconds) == ["total_s", "step_s", "decode_s", "encode_s", "store_s"]
    assert ids_of(lines, "task uuid=") == ["request-1"]


def test_a_task_that_failed_has_its_code_and_the_size_that_was_requested(
    client: TestClient, engine: FakeEngine, lines: pytest.LogCaptureFixture
) -> None:
    engine.failure = ("inferenceError", "died")
    client.post("/v1", json=[make_task(width=1344, height=704)])
    [fields] = fields_of(lines, "task")
    assert (fields["outcome"], fields["size"], fields["images"]) == (
        "inferenceError", "1344x704", 0,
    )  # fmt: skip


def test_a_task_that_stays_for_the_next_start_has_no_line_yet(
    settings: Settings, engine: FakeEngine, lines: pytest.LogCaptureFixture
) -> None:
    engine.is_held = True
    with TestClient(create_app(settings, engine)) as client:
        client.post("/v1", json=[make_task(deliveryMethod="async")])
    assert fields_of(lines, "task") == []


def test_no_line_holds_a_prompt_a_key_or_a_url_of_a_client(
    settings: Settings, new_client: Callable[..., TestClient], lines: pytest.LogCaptureFixture
) -> None:
    lines.set_level(logging.DEBUG)
    engine, key = FakeEngine(), "key-that-is-secret"
    client = new_client(settings, engine, [key])
    headers = {"Authorization": f"Bearer {key}"}
    secrets = {
        "positivePrompt": "a fox nobody may see",
        "negativePrompt": "what nobody may see",
        "uploadEndpoint": "http://127.0.0.1:9/put?signature=hidden",
    }
    client.post("/v1", json=[make_task(**secrets)], headers=headers)
    client.post("/v1", json=[make_task(positivePrompt=secrets["positivePrompt"])], headers=headers)
    engine.fault = KeyError("a bug")
    client.post("/v1", json=[make_task(positivePrompt=secrets["positivePrompt"])], headers=headers)
    client.post("/v1", json=[make_task()], headers={"Authorization": "Bearer key-that-is-secret2"})
    body = {"prompt": secrets["positivePrompt"]}
    client.post("/v1/images/generations", json=body, headers=headers)
    with client.websocket_connect("/v1") as socket:
        ask(socket, {"taskType": "authentication", "apiKey": key})
        ask(socket, make_task(positivePrompt=secrets["positivePrompt"]))
    ours = [line for line in lines.records if not line.name.startswith(("httpx", "httpcore"))]
    text = "\n".join(map(logging.Formatter().format, ours))
    assert "a bug" in text
    assert [word for word in ("nobody may see", key, "hidden") if word in text] == []
    assert fields_of(lines, "task")[0]["key"] == "environment-0"


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
