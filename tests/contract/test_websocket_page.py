"""The frames that docs/websocket.md shows: sent, and answered in the same shape."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketTestSession

from server.app import create_app
from server.settings import Settings
from server.tasks.key_file import add_key
from tests.contract.conftest import FakeEngine

PAGE = Path(__file__).parents[2] / "docs" / "websocket.md"
LINES = [line.strip() for line in PAGE.read_text(encoding="utf-8").splitlines()]
FRAMES = [(line[0], json.loads(line[2:])) for line in LINES if line.startswith(("> [", "< {"))]


def shape(value: Any) -> Any:
    """Return a frame with its values' types instead of them; words of the protocol stay."""
    if isinstance(value, dict):
        return {
            name: part if name in ("taskType", "code", "status", "pong") else shape(part)
            for name, part in value.items()
            if name not in ("documentation", "progress", "estimatedSeconds")  # or null
        }
    if isinstance(value, list):
        return [shape(part) for part in value]
    return type(value).__name__


def receive(socket: WebSocketTestSession) -> Any:
    frame = socket.receive_json()
    if "error" in frame:  # the page shortens the repetition
        frame["error"] = {name: frame["error"][name] for name in ("code", "message")}
    return frame


def test_the_page_shows_frames_of_every_kind() -> None:
    sent = {task["taskType"] for side, tasks in FRAMES if side == ">" for task in tasks}
    assert sent == {"authentication", "imageInference", "getResponse", "ping", "cancelTask"}
    assert len(FRAMES) > 14


@pytest.mark.parametrize("frame", [frame for side, frame in FRAMES if side == ">"])
def test_the_frames_of_clients_are_as_the_openapi_page_says(
    client: TestClient, frame: list[dict[str, Any]]
) -> None:
    components = client.get("/openapi.json").json()["components"]
    schema = {"$ref": "#/components/schemas/Tasks", "components": components}
    faults = [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(frame)]
    assert bool(faults) is (frame[0].get("steps") == 0)  # the one that shows a refusal


def test_the_frames_of_the_server_are_those_that_it_sends(
    settings: Settings, engine: FakeEngine
) -> None:
    key = add_key(Path(settings.keys.file), "one")
    session: str | None = None
    with (
        TestClient(create_app(settings, engine)) as client,
        client.websocket_connect("/v1") as socket,
    ):
        for side, frame in FRAMES:
            if side == "<":
                answer = receive(socket)
                assert shape(answer) == shape(frame)
                item = answer.get("data", [{}])[0]
                session = item.get("connectionSessionUUID", session)
                continue
            for task in frame:
                engine.is_held = task.get("deliveryMethod") == "async" or (
                    task["taskType"] == "getResponse"
                )
                if task.get("apiKey") == "hy-...":
                    task = {**task, "apiKey": key}
                if "connectionSessionUUID" in task:
                    task = {**task, "connectionSessionUUID": session}
                socket.send_json([task])
        engine.is_held = False
