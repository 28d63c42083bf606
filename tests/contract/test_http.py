"""The HTTP transport: bodies, envelopes, limits, failures and their status."""

import json
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from server.runware.schemas import ImageInference
from server.settings import Settings
from tests.contract.conftest import FakeEngine, make_task, tasks_of
from tests.waiting import wait_until


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1?sdk=js&version=1.3.2"])
def test_the_endpoint_answers_on_its_spellings_without_a_redirect(
    client: TestClient, path: str
) -> None:
    assert client.post(path, json=[make_task()]).status_code == 200


def test_a_lone_object_is_one_task(client: TestClient) -> None:
    assert len(client.post("/v1", json=make_task()).json()["data"]) == 1


def test_errors_stay_with_their_task(client: TestClient) -> None:
    good, bad = make_task(), make_task(steps=0)
    response = client.post("/v1", json=[good, bad, 3])
    assert response.status_code == 200
    assert [item["taskUUID"] for item in response.json()["data"]] == [good["taskUUID"]]
    first, second = response.json()["errors"]
    assert (first["taskUUID"], first["taskType"]) == (bad["taskUUID"], "imageInference")
    assert second["code"] == "invalidTask"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"[]", b"nope", b"[NaN]", b'["\\ud800"]']
)
def test_a_body_that_is_no_array_of_tasks_is_refused(client: TestClient, body: bytes) -> None:
    response = client.post("/v1", content=body)
    assert response.status_code in (400, 413)
    assert response.json()["errors"][0]["code"] in (
        "invalidJSON",
        "arrayTooSmall",
        "requestTooLarge",
    )


def test_a_body_over_the_limit_is_refused(client: TestClient) -> None:
    response = client.post("/v1", content=b"[" + b" " * 200_000 + b"]")
    assert response.status_code == 413
    assert response.json()["errors"][0]["code"] == "requestTooLarge"


def test_a_full_queue_answers_429_and_recovers(client: TestClient, engine: FakeEngine) -> None:
    engine.is_held = True
    first: list[int] = []
    sender = threading.Thread(
        target=lambda: first.append(
            client.post("/v1", json=[make_task(numberResults=20)]).status_code
        )
    )
    sender.start()
    wait_until(lambda: bool(engine.jobs))
    full = client.post("/v1", json=[make_task(numberResults=20)])
    assert (full.status_code, full.json()["errors"][0]["code"]) == (429, "rateLimitExceeded")
    assert int(full.headers["retry-after"]) > 0
    engine.is_held = False
    sender.join(timeout=10)
    assert first == [200]
    assert client.post("/v1", json=[make_task(numberResults=20)]).status_code == 200


@pytest.mark.parametrize(
    ("code", "status"),
    [("inferenceError", 500), ("promptTooLong", 400), ("serviceUnavailable", 503)],
)
def test_a_job_that_fails_is_an_error_with_its_tasks_uuid(
    client: TestClient, engine: FakeEngine, code: str, status: int
) -> None:
    engine.failure = (code, "it did not work")
    task = make_task()
    response = client.post("/v1", json=[task])
    assert response.status_code == status
    (error,) = response.json()["errors"]
    assert (error["code"], error["taskUUID"]) == (code, task["taskUUID"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = st.dictionaries(st.sampled_from(sorted(ImageInference.model_fields)), JSON, max_size=4)


@hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(body=st.one_of(JSON, FIELDS.map(lambda fields: [make_task(**fields)])))
def test_no_json_whatever_breaks_the_server(client: TestClient, body: Any) -> None:
    response = client.post("/v1", content=json.dumps(body))
    assert response.status_code in (200, 400)
    assert response.json().keys() & {"data", "errors"}


def test_a_broken_store_is_503_and_the_task_can_be_sent_again(
    client: TestClient, settings: Settings, engine: FakeEngine
) -> None:
    database = Path(settings.tasks.database_url.removeprefix("sqlite:///"))
    with sqlite3.connect(database) as connection:
        connection.execute("ALTER TABLE tasks RENAME TO hidden")
    task = make_task()
    answer = client.post("/v1", json=[task])
    assert answer.status_code == 503
    assert answer.json()["errors"][0]["code"] == "serviceUnavailable"
    assert "sqlite" not in answer.text.lower()
    with sqlite3.connect(database) as connection:
        connection.execute("ALTER TABLE hidden RENAME TO tasks")
    connection.close()
    assert client.post("/v1", json=[task]).status_code == 200
    assert len(engine.jobs) == 1


def test_a_task_that_failed_with_5xx_frees_its_uuid_but_nobody_elses(
    client: TestClient, engine: FakeEngine
) -> None:
    task = make_task()
    engine.failure = ("inferenceError", "it did not work")
    assert client.post("/v1", json=[task]).status_code == 500
    engine.failure = None
    assert client.post("/v1", json=[task]).status_code == 200
    tasks_of(client).drain()
    assert client.post("/v1", json=[task]).status_code == 503
    poll = [{"taskType": "getResponse", "taskUUID": task["taskUUID"]}]
    assert client.post("/v1", json=poll).json()["data"][0]["status"] == "success"
