"""Faults of the server itself: answered in an envelope, logged once, and nothing of them told."""

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient

from server.app import create_app
from server.settings import Settings
from tests.contract.conftest import FakeEngine, change

PAGE = "https://page.example"


@pytest.fixture
def broken_client(settings: Settings, engine: FakeEngine) -> Any:
    """A server with a route that fails, and one that fails in the middle of its answer."""
    app: Any = create_app(change(settings, server__cors_origins=(PAGE,)), engine)

    async def broken() -> None:
        raise KeyError("secret")

    async def half() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"half"
            raise KeyError("secret")

        return StreamingResponse(parts())

    app.add_api_route("/v1/broken", broken)
    app.add_api_route("/v1/half", half, response_model=None)
    with TestClient(app) as client:
        yield client


def test_a_fault_of_the_server_is_an_envelope_without_its_words(broken_client: TestClient) -> None:
    answer = broken_client.get("/v1/broken")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internalServerError")
    assert answer.json()["error"].keys() >= {"message", "type", "param", "code"}
    assert "secret" not in json.dumps(answer.json())


def test_a_fault_is_logged_with_its_traceback_and_its_status(
    broken_client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        answer = broken_client.get("/v1/broken", headers={"X-Request-ID": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"
    (fault,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert fault.exc_info is not None
    (line,) = [r.message for r in caplog.records if r.name == "hyimage.access"]
    assert "id=abc-1" in line
    assert "status=500" in line


def test_a_page_of_another_origin_can_read_a_fault(broken_client: TestClient) -> None:
    answer = broken_client.get("/v1/broken", headers={"Origin": PAGE})
    assert answer.headers["access-control-allow-origin"] == PAGE


def test_an_answer_that_breaks_off_is_not_made_whole(broken_client: TestClient) -> None:
    with pytest.raises(KeyError, match="secret"):
        broken_client.get("/v1/half")
