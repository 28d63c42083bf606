"""Fuzzing: whatever is sent, the server answers, leaks nothing, and still generates afterwards."""

import json
from typing import Any

import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.core.result import Ok

from server.runware.schemas import ImageInference

MANY = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
VALID = {
    "taskType": "imageInference",
    "taskUUID": "b5e41b0b-cb66-434d-90fb-58af2d15d175",
    "model": "runware:180@1",
    "positivePrompt": "a red fox",
}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = st.dictionaries(st.sampled_from(sorted(ImageInference.model_fields)), JSON, max_size=4)
TASKS = st.one_of(
    FIELDS.map(lambda fields: {**VALID, **fields}),
    st.builds(
        lambda kind, fields: {**fields, "taskType": kind},
        st.sampled_from(["getResponse", "getTaskDetails", "ping", "imageUpload", "modelSearch"]),
        st.dictionaries(st.sampled_from(["taskUUID", "image", "search", "offset"]), JSON),
    ),
)
BODIES = st.one_of(JSON, st.lists(TASKS, max_size=3))


@MANY
@given(body=BODIES)
def test_any_json_over_http_gets_an_envelope(client: TestClient, body: Any) -> None:
    response = client.post("/v1", content=json.dumps(body))
    assert response.status_code < 500
    assert response.json().keys() & {"data", "errors"}
    assert "Traceback" not in response.text


@MANY
@given(body=BODIES)
def test_any_json_over_a_socket_gets_a_frame(client: TestClient, body: Any) -> None:
    with client.websocket_connect("/v1") as socket:
        socket.send_text(json.dumps([{"taskType": "authentication", "apiKey": "any"}]))
        socket.receive_json()
        socket.send_text(json.dumps(body))
        socket.send_text(json.dumps([{"taskType": "ping", "taskUUID": "the last"}]))
        while True:
            frame = socket.receive_json()
            assert frame.keys() & {"data", "errors"}
            if frame.get("data", [{}])[0].get("taskUUID") == "the last":
                break


def test_every_operation_of_the_openapi_page_keeps_its_word(client: TestClient) -> None:
    """schemathesis, over all operations of our own page, against the app in this process."""
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    num_calls = 0
    for result in schema.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()

        @settings(MANY, max_examples=40)
        @given(case=operation.as_strategy())
        def call(case: Any) -> None:
            nonlocal num_calls
            num_calls += 1
            request = case.as_transport_kwargs()
            sent = {k: v for k, v in request.items() if k in ("json", "data", "params", "headers")}
            response = client.request(request["method"], case.formatted_path, **sent)
            assert response.status_code < 500 or case.path == "/ready"
            assert "Traceback" not in response.text

        call()
    assert num_calls > 80
    assert client.post("/v1", json=[{**VALID, "taskUUID": VALID["taskUUID"][:-1] + "6"}]).is_success
