"""What clients of the hosted API write in other ways than its page: accepted as meant."""

import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from server.app import create_app
from server.settings import Settings
from server.tasks.key_file import add_key
from tests.contract.conftest import FakeEngine, change, make_task, refusal, tasks_of
from tests.waiting import wait_until


def drawn(client: TestClient, **changes: Any) -> dict[str, Any]:
    """Send a task; return its first item."""
    response = client.post("/v1", json=[make_task(**changes)])
    assert response.status_code == 200, response.text
    item: dict[str, Any] = response.json()["data"][0]
    return item


@pytest.mark.parametrize("name", ["JPEG", "jpeg", "Jpeg", "jpg"])
def test_jpeg_means_jpg(client: TestClient, engine: FakeEngine, name: str) -> None:
    assert drawn(client, outputFormat=name)["imageURL"].endswith(".jpg")
    assert engine.jobs[0].image_format == "JPG"


def test_the_slug_names_the_model(client: TestClient) -> None:
    assert drawn(client, model="tencent-hunyuanimage-3-0")["imageURL"]


@pytest.mark.parametrize(
    ("name", "text", "value"), [("steps", "20.0", 20), ("seed", "1e3", 1000), ("steps", "3e1", 30)]
)
def test_an_integer_may_be_written_as_a_float(
    client: TestClient, engine: FakeEngine, name: str, text: str, value: int
) -> None:
    sent = f'{{"taskType":"imageInference","taskUUID":"{uuid.uuid4()}","model":"runware:180@1"'
    body = f'[{sent},"positivePrompt":"a fox","{name}":{text}}}]'
    assert client.post("/v1", content=body).status_code == 200
    request = engine.jobs[0].request
    assert {"steps": request.num_steps, "seed": request.seeds[0]}[name] == value


def test_nested_integers_and_sizes_may_be_floats_too(
    client: TestClient, engine: FakeEngine
) -> None:
    options = {"teaCache": True, "cacheStartStep": 4.0, "cacheMaxConsecutiveSteps": 2.0}
    drawn(client, width=1024.0, height=1024.0, acceleratorOptions=options)
    request = engine.jobs[0].request
    assert (request.width_px, request.cache.start, request.cache.max_consecutive) == (1024, 4, 2)


@pytest.mark.parametrize("value", [1.5, "5", True, False, [5]])
def test_what_is_no_integer_is_refused_as_before(client: TestClient, value: object) -> None:
    assert refusal(client, steps=value)["code"] == "invalidSteps"


@pytest.mark.parametrize("name", ["lora", "controlNet", "inputs", "settings"])
@pytest.mark.parametrize("empty", [[], {}, None])
def test_an_empty_feature_is_an_absent_one(client: TestClient, name: str, empty: object) -> None:
    assert drawn(client, **{name: empty})["imageURL"]
    assert refusal(client, **{name: [1]})["code"] == "unsupportedParameter"


def test_every_frame_of_one_image_is_that_image(settings: Settings, engine: FakeEngine) -> None:
    with TestClient(create_app(settings, engine)) as client:
        error = refusal(client, safety={"mode": "full", "checkContent": "x"})
    assert error["parameter"] == "safety.checkContent"  # and not the mode


def test_a_uuid_is_the_same_in_either_case_and_comes_back_as_written(client: TestClient) -> None:
    upper = str(uuid.uuid4()).upper()
    assert drawn(client, taskUUID=upper)["taskUUID"] == upper
    assert refusal(client, taskUUID=upper.lower())["code"] == "conflictTaskUUID"
    for spelling in (upper, upper.lower()):
        poll = {"taskType": "getResponse", "taskUUID": spelling}
        (item,) = client.post("/v1", json=[poll]).json()["data"]
        assert (item["taskUUID"], item["status"]) == (spelling, "success")
    held = make_task(taskUUID=str(uuid.uuid4()).upper(), deliveryMethod="async")
    (acknowledged,) = client.post("/v1", json=[held]).json()["data"]
    assert acknowledged["taskUUID"] == held["taskUUID"]


def test_a_conflict_does_not_say_that_there_is_a_task(client: TestClient) -> None:
    task = make_task()
    drawn(client, taskUUID=task["taskUUID"])
    assert "exist" not in refusal(client, taskUUID=task["taskUUID"])["message"]


def test_details_are_the_task_as_it_was_sent(client: TestClient) -> None:
    options = {"fbcache": True, "cacheDistance": 0.2, "cacheEndStep": None}
    task = make_task(
        outputType="URL", outputFormat="png", clipSkip=0, acceleratorOptions=options, seed=None
    )
    client.post("/v1", json=[task])
    details = {"taskType": "getTaskDetails", "taskUUID": task["taskUUID"]}
    (item,) = client.post("/v1", json=[details]).json()["data"]
    assert item["request"] == [task]


def test_ttl_means_nothing_for_an_image_without_a_url(client: TestClient) -> None:
    def expiry(**changes: Any) -> float:
        task = make_task(ttl=60, **changes)
        client.post("/v1", json=[task])
        store = tasks_of(client)._services.store
        portal = client.portal
        assert portal is not None
        stored = portal.call(store.find, task["taskUUID"])
        assert stored is not None
        return stored.images[0].expires_at - time.time()

    assert expiry() < 100
    assert expiry(outputType="base64Data") > 1000
    assert expiry(outputType=["base64Data", "URL"]) < 100


def test_a_poll_of_a_failed_task_succeeds_and_reports_the_error(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.failure = ("inferenceError", "it did not work")
    task = make_task(deliveryMethod="async")
    client.post("/v1", json=[task])
    poll = {"taskType": "getResponse", "taskUUID": task["taskUUID"]}
    wait_until(lambda: "errors" in client.post("/v1", json=[poll]).json())
    answer = client.post("/v1", json=[poll])
    assert answer.status_code == 200
    (error,) = answer.json()["errors"]
    assert (error["code"], error["status"]) == ("inferenceError", "error")
    assert (error["taskUUID"], error["taskType"]) == (task["taskUUID"], "imageInference")
    unknown = client.post("/v1", json=[{**poll, "taskUUID": str(uuid.uuid4())}])
    assert unknown.status_code == 404


def test_a_poll_returns_the_images_that_were_finished_beside_the_error(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.failure_after = 2
    task = make_task(deliveryMethod="async", numberResults=3, seed=5)
    client.post("/v1", json=[task])
    poll = {"taskType": "getResponse", "taskUUID": task["taskUUID"]}
    wait_until(lambda: "errors" in client.post("/v1", json=[poll]).json())
    answer = client.post("/v1", json=[poll])
    assert answer.status_code == 200
    assert [item["seed"] for item in answer.json()["data"]] == [5, 6]
    assert [error["status"] for error in answer.json()["errors"]] == ["error"]
    details = {"taskType": "getTaskDetails", "taskUUID": task["taskUUID"]}
    (item,) = client.post("/v1", json=[details]).json()["data"]
    assert item["response"].keys() == {"data", "errors"}


@pytest.mark.parametrize(
    ("changes", "fragment", "kind"),
    [
        ({"width": 5, "height": 5}, "request-width", "integer"),
        ({"model": "other"}, "request-model", "string"),
        ({"steps": True}, "request-steps", "integer"),
        ({"positivePrompt": ...}, "request-positiveprompt", "string"),
        ({"safety": {"mode": "x"}}, "request-safety-mode", "string"),
        ({"maskImage": "x"}, "request-maskimage", None),
        ({"seedImage": "x"}, "request-seedimage", "string"),
        ({"referenceImages": ["x"]}, "request-referenceimages", "string"),
        ({"CFGScale": "7"}, "request-cfgscale", "float"),
    ],
)
def test_every_error_has_a_type_and_a_page(
    client: TestClient, changes: dict[str, Any], fragment: str, kind: str | None
) -> None:
    error = refusal(client, **changes)
    assert error["documentation"].endswith(f"#{fragment}")
    assert error.get("type") == kind


@pytest.mark.parametrize(
    "body",
    [
        '[{"steps": true}]', '[{"steps": 1e999}]', "[null]", "[[1]]", '["x"]', "[true]", b"\xff",
        "[" * 60_000, "", '["\\ud800"]', '[{"taskUUID": {"a": null}}]', '[{"safety": [null]}]',
    ],
)  # fmt: skip
def test_no_message_speaks_python(client: TestClient, body: str) -> None:
    if isinstance(body, str):
        rest = '[{"taskType":"imageInference","model":"runware:180@1","positivePrompt":"fox",'
        body = body.replace("[{", rest)
    for error in client.post("/v1", content=body).json()["errors"]:
        words = ("None", "True", "False", " inf", "dict", "codec", "recursion", "NoneType")
        assert not [word for word in words if word in error["message"]], error["message"]
        assert error["documentation"]


def test_cost_can_always_be_included(settings: Settings, engine: FakeEngine) -> None:
    with TestClient(create_app(change(settings, price__always_included=True), engine)) as client:
        assert drawn(client)["cost"] > 0


def test_a_bad_key_gets_a_challenge(settings: Settings, engine: FakeEngine) -> None:
    add_key(Path(settings.keys.file), "one")
    with TestClient(create_app(settings, engine)) as client:
        answer = client.post("/v1", json=[make_task()])
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        with client.websocket_connect("/v1") as socket:
            socket.send_json([{"taskType": "authentication"}])
            assert socket.receive_json()["errors"][0]["code"] == "invalidApiKey"
