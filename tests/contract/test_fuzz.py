"""Fuzzing: whatever is sent, the server answers, leaks nothing, and still generates afterwards."""

import json
import uuid
from collections import Counter
from typing import Any

import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from server.api.dispatch import TASK_TYPES
from server.api.openai_request import ImageGeneration
from server.runware.schemas import ImageInference

SENT = ("json", "data", "files", "params", "headers")
PROMISES = [
    not_a_server_error, status_code_conformance, content_type_conformance,
    response_headers_conformance, response_schema_conformance,
]  # fmt: skip
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
OTHER_FIELDS = (
    "taskUUID", "image", "media", "search", "offset", "operation", "apiKey",
    "connectionSessionUUID",
)  # fmt: skip
STREAMED: Any = {"prompt": "a red fox", "stream": True, "response_format": "b64_json"}
FORM_FIELDS = st.dictionaries(st.sampled_from(sorted(ImageGeneration.model_fields)), JSON)
FIELDS = st.dictionaries(st.sampled_from(sorted(ImageInference.model_fields)), JSON, max_size=4)
TASKS = st.one_of(
    FIELDS.map(lambda fields: {**VALID, **fields}),
    st.builds(
        lambda kind, fields: {**fields, "taskType": kind},
        st.sampled_from(TASK_TYPES),
        st.dictionaries(st.sampled_from(OTHER_FIELDS), JSON),
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


@MANY
@given(body=st.one_of(JSON, FORM_FIELDS.map(lambda fields: {"prompt": "a red fox", **fields})))
def test_any_json_in_the_openai_form_gets_images_or_an_error(client: TestClient, body: Any) -> None:
    response = client.post("/v1/images/generations", content=json.dumps(body))
    assert response.status_code < 500
    if response.headers["content-type"].startswith("text/event-stream"):
        return
    answer = response.json()
    assert answer.get("data") or answer["error"].keys() == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text


def test_every_operation_of_the_openapi_page_keeps_its_word(editor: TestClient) -> None:
    """schemathesis, over our own page, against the app in this process.

    Whatever is sent, status, content type, headers and body are as described.
    """
    client = editor  # every operation does something where images are taken
    page = client.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(page)
    operations = [operation for path in page["paths"].values() for operation in path.values()]
    called: Counter[str] = Counter()

    def call(case: Any) -> None:
        called[case.operation.definition.raw["operationId"]] += 1
        request = case.as_transport_kwargs()
        sent = {k: v for k, v in request.items() if k in SENT}
        # A multipart form has no numbers.
        sent["files"] = [
            (name, (file, part if isinstance(part, bytes | str) else str(part)))
            for name, (file, part) in sent.get("files") or ()
        ]
        response = client.request(request["method"], case.formatted_path, **sent)
        assert "Traceback" not in response.text
        case.validate_response(response, checks=PROMISES)

    for operation in operations:
        strategy = schema.find_operation_by_id(operation["operationId"]).as_strategy()
        settings(MANY, max_examples=40)(given(case=strategy)(call))()
    form = schema.find_operation_by_id("createImages")
    call(form.Case(body=STREAMED, media_type="application/json"))  # chance rarely finds a stream
    assert {
        "runTasks",
        "createImages",
        "editImages",
        "getImage",
        "listModels",
        "getReadiness",
    } <= called.keys()
    assert called["runTasks"] >= 40
    assert client.post("/v1", json=[{**VALID, "taskUUID": str(uuid.uuid4())}]).is_success
