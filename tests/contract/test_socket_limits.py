"""WebSocket sessions and limits: authenticating again, without a key, and too often."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from server.app import create_app
from server.settings import Settings
from server.tasks.key_file import add_key
from tests.contract.conftest import FakeEngine, ask, change, make_task, state_of


def authentication(key: str, **fields: str) -> dict[str, str]:
    return {"taskType": "authentication", "apiKey": key, **fields}


def ping_for_ever(socket: WebSocketTestSession) -> None:
    while True:
        assert ask(socket, {"taskType": "ping"})["errors"]


def test_a_socket_that_authenticates_again_keeps_its_one_session(client: TestClient) -> None:
    with client.websocket_connect("/v1") as socket:
        frames = [ask(socket, authentication("any")) for _ in range(50)]
        frames.append(ask(socket, authentication("any", connectionSessionUUID="not known")))
        uuids = {frame["data"][0]["connectionSessionUUID"] for frame in frames}
        assert len(uuids) == 1
        assert len(state_of(client).sessions) == 1
        assert ask(socket, make_task())["data"]


def test_a_socket_that_changes_its_key_leaves_no_session_behind(
    settings: Settings, engine: FakeEngine
) -> None:
    keys = [add_key(Path(settings.keys.file), name) for name in ("one", "two")]
    with TestClient(create_app(settings, engine)) as client:
        with client.websocket_connect("/v1") as socket:
            for turn in range(20):
                assert ask(socket, authentication(keys[turn % 2]))["data"]
            assert len(state_of(client).sessions) == 1
            assert state_of(client).sessions.num_sockets_of == {"two": 1}
        assert not state_of(client).sessions.num_sockets_of


def test_a_key_has_a_limit_of_sockets_and_another_key_its_own(
    settings: Settings, engine: FakeEngine
) -> None:
    one, two = [add_key(Path(settings.keys.file), name) for name in ("one", "two")]
    limited = change(settings, server__max_connections_per_key=2)
    with (
        TestClient(create_app(limited, engine)) as client,
        client.websocket_connect("/v1") as first,
        client.websocket_connect("/v1") as second,
    ):
        assert ask(first, authentication(one))["data"]
        assert ask(second, authentication(one))["data"]
        assert ask(second, authentication(one))["data"]  # again is not a further one
        with client.websocket_connect("/v1") as third:
            (error,) = ask(third, authentication(one))["errors"]
            assert (error["code"], error["taskType"]) == ("rateLimitExceeded", "authentication")
            with pytest.raises(WebSocketDisconnect) as closed:
                third.receive_json()
            assert closed.value.code == 1013
        with client.websocket_connect("/v1") as other:
            assert ask(other, authentication(two))["data"]


def test_a_socket_that_does_not_authenticate_in_time_is_closed_whatever_it_sends(
    settings: Settings, engine: FakeEngine
) -> None:
    hasty = change(settings, server__authentication_timeout_s=0.3)
    with (
        TestClient(create_app(hasty, engine)) as client,
        client.websocket_connect("/v1") as early,
        client.websocket_connect("/v1") as late,
    ):
        assert ask(early, authentication("any"))["data"]
        with pytest.raises(WebSocketDisconnect) as closed:
            ping_for_ever(late)
        assert closed.value.code == 1008
        assert ask(early, {"taskType": "ping"})["data"]
