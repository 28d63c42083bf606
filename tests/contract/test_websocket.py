"""The WebSocket transport, with an engine that generates nothing."""

import json
import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from server.app import create_app
from server.settings import Settings
from server.tasks.keys import Keys
from tests.contract.conftest import FakeEngine, ask, change, make_task, tasks_of
from tests.waiting import wait_until


def authenticate(socket: WebSocketTestSession, **fields: str) -> str:
    frame = ask(socket, {"taskType": "authentication", "apiKey": "any", **fields})
    (item,) = frame["data"]
    assert item["taskType"] == "authentication"
    return str(item["connectionSessionUUID"])


@pytest.fixture
def socket(client: TestClient) -> Iterator[WebSocketTestSession]:
    with client.websocket_connect("/v1?sdk=js&version=1.3.2") as socket:
        authenticate(socket)
        yield socket


@pytest.mark.parametrize("path", ["/v1", "/v1/"])
def test_a_session_starts_with_its_own_uuid(client: TestClient, path: str) -> None:
    with client.websocket_connect(path) as one, client.websocket_connect(path) as two:
        assert uuid.UUID(authenticate(one)) != uuid.UUID(authenticate(two))


def test_a_ping_is_answered_alone_in_its_frame(socket: WebSocketTestSession) -> None:
    pong = {"taskType": "ping", "pong": True}
    assert ask(socket, {"taskType": "ping", "ping": True}) == {"data": [pong]}


def test_each_image_is_a_frame_of_its_own(socket: WebSocketTestSession) -> None:
    task = make_task(seed=4, numberResults=3)
    frames = [ask(socket, task), socket.receive_json(), socket.receive_json()]
    assert [len(frame["data"]) for frame in frames] == [1, 1, 1]
    assert [frame["data"][0]["seed"] for frame in frames] == [4, 5, 6]
    assert all("errors" not in frame and "error" not in frame for frame in frames)


def test_an_error_is_alone_in_its_frame_and_names_its_task(socket: WebSocketTestSession) -> None:
    bad = make_task(steps=0)
    frame = ask(socket, bad)
    assert frame.keys() == {"errors"}
    assert [error["taskUUID"] for error in frame["errors"]] == [bad["taskUUID"]]


def test_tasks_of_one_socket_run_side_by_side(
    socket: WebSocketTestSession, engine: FakeEngine
) -> None:
    engine.is_held = True
    slow = make_task()
    socket.send_text(json.dumps([slow]))
    assert ask(socket, {"taskType": "ping"})["data"][0]["pong"]
    engine.is_held = False
    assert socket.receive_json()["data"][0]["taskUUID"] == slow["taskUUID"]


def test_async_delivery_is_one_acknowledgement_and_then_polls(
    socket: WebSocketTestSession, engine: FakeEngine
) -> None:
    engine.is_held = True
    task = make_task(deliveryMethod="async", numberResults=2)
    acknowledged = ask(socket, task)["data"]
    assert acknowledged == [{"taskType": "imageInference", "taskUUID": task["taskUUID"]}]
    poll = {"taskType": "getResponse", "taskUUID": task["taskUUID"]}
    waiting = ask(socket, poll)["data"]
    assert [item["status"] for item in waiting] == ["processing", "processing"]
    assert len({item["imageUUID"] for item in waiting}) == 2
    assert all("imageURL" not in item for item in waiting)
    engine.is_held = False
    wait_until(lambda: ask(socket, poll)["data"][0]["status"] == "success")
    done = ask(socket, poll)["data"]
    assert {item["imageUUID"] for item in done} == {item["imageUUID"] for item in waiting}
    assert all(item["imageURL"] for item in done)
    details = ask(socket, {"taskType": "getTaskDetails", "taskUUID": task["taskUUID"]})["data"][0]
    assert details["request"][0]["positivePrompt"] == task["positivePrompt"]
    assert len(details["response"]["data"]) == 2


def test_a_used_uuid_is_a_conflict_while_running_and_afterwards(
    socket: WebSocketTestSession, engine: FakeEngine
) -> None:
    task = make_task()
    engine.is_held = True
    socket.send_text(json.dumps([task]))
    assert ask(socket, task)["errors"][0]["code"] == "conflictTaskUUID"
    engine.is_held = False
    socket.receive_json()
    assert ask(socket, task)["errors"][0]["code"] == "conflictTaskUUID"


def test_a_failed_task_tells_so_to_whoever_polls(
    socket: WebSocketTestSession, engine: FakeEngine
) -> None:
    engine.failure = ("inferenceError", "it did not work")
    task = make_task()
    assert ask(socket, task)["errors"][0]["code"] == "inferenceError"
    (error,) = ask(socket, {"taskType": "getResponse", "taskUUID": task["taskUUID"]})["errors"]
    assert (error["code"], error["status"]) == ("inferenceError", "error")
    assert error["taskUUID"] == task["taskUUID"]


def test_an_unknown_task_is_not_found(socket: WebSocketTestSession) -> None:
    (error,) = ask(socket, {"taskType": "getResponse", "taskUUID": str(uuid.uuid4())})["errors"]
    assert error["code"] == "taskFailedOrNotFound"


def test_results_of_a_dropped_socket_wait_for_the_sessions_return(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.is_held = True
    task = make_task(numberResults=2)
    with client.websocket_connect("/v1") as first:
        session = authenticate(first)
        first.send_text(json.dumps([task]))
        ask(first, {"taskType": "ping"})
    engine.is_held = False
    wait_until(lambda: not tasks_of(client).num_running_tasks)
    with client.websocket_connect("/v1") as second:
        assert authenticate(second, connectionSessionUUID=session) == session
        frames = [second.receive_json(), second.receive_json()]
        assert [frame["data"][0]["taskUUID"] for frame in frames] == [task["taskUUID"]] * 2
        assert ask(second, {"taskType": "ping"})["data"][0]["pong"]  # and nothing twice


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '[{"taskType": 5}]', "[[[", '"\\ud800"'])
def test_a_frame_that_is_no_task_is_an_error_and_the_socket_lives(
    socket: WebSocketTestSession, text: str
) -> None:
    socket.send_text(text)
    assert socket.receive_json()["errors"]
    assert ask(socket, {"taskType": "ping"})["data"]


def test_a_binary_frame_that_holds_json_is_a_frame_like_any_other(
    socket: WebSocketTestSession,
) -> None:
    task = make_task()
    socket.send_bytes(json.dumps([task, {"taskType": "ping"}]).encode())
    frames = [socket.receive_json(), socket.receive_json()]
    (item,) = (f["data"][0] for f in frames if f["data"][0]["taskType"] == "imageInference")
    assert item["taskUUID"] == task["taskUUID"]


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n", b"\xff\xfe", b"{"])
def test_a_binary_frame_that_is_not_json_is_an_error_and_the_socket_lives(
    socket: WebSocketTestSession, content: bytes
) -> None:
    socket.send_bytes(content)
    assert [error["code"] for error in socket.receive_json()["errors"]] == ["invalidJSON"]
    assert ask(socket, {"taskType": "ping"})["data"]


class FaultyKeys(Keys):
    """Keys whose check has a bug."""

    def check(self, key: str | None) -> str:
        raise KeyError("a bug of the check")


def test_a_bug_while_a_frame_is_handled_is_not_swallowed(
    settings: Settings, engine: FakeEngine
) -> None:
    app = create_app(settings, engine)
    app.state.hyimage = replace(app.state.hyimage, keys=FaultyKeys({}))
    with (
        TestClient(app) as client,
        pytest.raises(KeyError, match="a bug of the check"),
        client.websocket_connect("/v1") as socket,
    ):
        ask(socket, {"taskType": "authentication", "apiKey": "any"})


def test_a_task_before_authentication_is_refused_with_its_uuid(client: TestClient) -> None:
    with client.websocket_connect("/v1") as socket:
        task = make_task()
        (error,) = ask(socket, task)["errors"]
        assert (error["code"], error["taskUUID"]) == ("missingApiKey", task["taskUUID"])


@pytest.fixture
def impatient(settings: Settings, engine: FakeEngine) -> Iterator[TestClient]:
    """A server that closes sockets after a short silence."""
    with TestClient(create_app(change(settings, server__socket_idle_s=0.2), engine)) as client:
        yield client


def wait_for_close(socket: WebSocketTestSession) -> None:
    with pytest.raises(WebSocketDisconnect):
        socket.receive_json()


def test_a_silent_socket_is_closed(impatient: TestClient) -> None:
    with impatient.websocket_connect("/v1") as socket:
        authenticate(socket)
        wait_for_close(socket)


def test_a_socket_that_waits_for_an_image_is_not_closed_for_its_silence(
    impatient: TestClient, engine: FakeEngine
) -> None:
    engine.is_held = True
    task = make_task()
    with impatient.websocket_connect("/v1") as waiting:
        authenticate(waiting)
        waiting.send_json([task])
        for _ in range(2):  # each is silent for a shorter time than the one that waits
            with impatient.websocket_connect("/v1") as silent:
                authenticate(silent)
                wait_for_close(silent)
        engine.is_held = False
        assert waiting.receive_json()["data"][0]["taskUUID"] == task["taskUUID"]
        wait_for_close(waiting)


def test_sockets_over_the_limit_are_told_to_come_back_later(
    settings: Settings, engine: FakeEngine
) -> None:
    limited = change(settings, server__max_connections=1)
    with (
        TestClient(create_app(limited, engine)) as client,
        client.websocket_connect("/v1") as first,
    ):
        authenticate(first)
        with (
            client.websocket_connect("/v1") as second,
            pytest.raises(WebSocketDisconnect) as caught,
        ):
            second.receive_json()
        assert caught.value.code == 1013
        assert ask(first, {"taskType": "ping"})["data"]
