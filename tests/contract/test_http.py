import base64
import json
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from server.runware.schemas import ImageInference
from server.runware.seeds import MAX_SEED
from server.settings import Settings
from tests.contract.conftest import make_task

TINY_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)

SEED_REQUESTS = json.loads((Path(__file__).parent / "seed_requests.json").read_text())


def refusal(client: TestClient, **changes: Any) -> dict[str, Any]:
    response = client.post("/v1", json=[make_task(**changes)])
    body = response.json()
    assert response.status_code == 400
    assert body["data"] == []
    assert body["error"] == body["errors"][0]
    error: dict[str, Any] = body["errors"][0]
    return error


@pytest.mark.parametrize("request_body", SEED_REQUESTS)
def test_the_published_example_requests_are_accepted_unchanged(
    client: TestClient, engine: Any, request_body: dict[str, Any]
) -> None:
    response = client.post("/v1", json=[request_body])
    assert response.status_code == 200
    assert response.json().keys() == {"data"}
    (item,) = response.json()["data"]
    assert item["taskUUID"] == request_body["taskUUID"]
    assert item["seed"] == request_body["seed"]
    (job,) = engine.jobs
    assert (job.request.width_px, job.request.height_px) == (
        request_body["width"],
        request_body["height"],
    )
    assert (job.request.num_steps, job.request.guidance) == (
        request_body["steps"],
        request_body["CFGScale"],
    )
    assert job.request.prompt == request_body["positivePrompt"]
    assert job.request.negative_prompt == request_body["negativePrompt"]


def test_defaults_are_those_of_the_parameter_page(client: TestClient, engine: Any) -> None:
    client.post("/v1", json=[make_task()])
    (job,) = engine.jobs
    assert (job.request.num_steps, job.request.guidance, job.image_format, job.quality) == (
        20,
        7.0,
        "JPG",
        95,
    )
    assert (job.request.width_px, job.request.height_px, len(job.request.seeds)) == (None, None, 1)
    assert job.request.seeds[0] < 2**32


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1?sdk=js&version=1.3.2"])
def test_the_endpoint_answers_on_its_spellings_without_a_redirect(
    client: TestClient, path: str
) -> None:
    assert client.post(path, json=[make_task()]).status_code == 200


def test_a_lone_object_is_one_task(client: TestClient) -> None:
    assert len(client.post("/v1", json=make_task()).json()["data"]) == 1


def test_each_result_has_its_own_seed_and_uuid(client: TestClient) -> None:
    data = client.post("/v1", json=[make_task(seed=5, numberResults=3)]).json()["data"]
    assert [item["seed"] for item in data] == [5, 6, 7]
    assert len({item["imageUUID"] for item in data}) == 3


def test_the_maximal_seed_of_the_page_is_accepted(client: TestClient) -> None:
    data = client.post("/v1", json=[make_task(seed=MAX_SEED, numberResults=2)]).json()["data"]
    assert [item["seed"] for item in data] == [MAX_SEED, 0]


@pytest.mark.parametrize("form", ["URL", "base64Data", "dataURI"])
def test_an_image_comes_in_exactly_the_form_asked_for(client: TestClient, form: str) -> None:
    (item,) = client.post(
        "/v1", json=[make_task(outputType=form, outputFormat="png", seed=1)]
    ).json()["data"]
    keys = {"URL": "imageURL", "base64Data": "imageBase64Data", "dataURI": "imageDataURI"}
    assert {key for key in item if key.startswith("image") and key != "imageUUID"} == {keys[form]}
    value = item[keys[form]]
    if form == "URL":
        assert value == f"http://example.test:8000/images/{item['imageUUID']}.png"
        image = client.get(value)
        assert (image.content, image.headers["content-type"]) == (b"image 1", "image/png")
    else:
        prefix = "data:image/png;base64," if form == "dataURI" else ""
        assert value.startswith(prefix)
        assert base64.b64decode(value.removeprefix(prefix)) == b"image 1"


def test_several_forms_can_be_asked_for_at_once(client: TestClient) -> None:
    (item,) = client.post("/v1", json=[make_task(outputType=["URL", "dataURI"])]).json()["data"]
    assert {"imageURL", "imageDataURI"} <= item.keys()


@pytest.mark.parametrize(
    "name",
    [
        "x.png",
        "..%2f..%2fetc%2fpasswd",
        "995dcd6c-eb7c-4dab-b7a8-0750324d78ac.png",
        "48865951-735f-4f68-b6dc-0d29616484b9.exe",
    ],
)
def test_an_image_that_is_not_there_is_404(client: TestClient, name: str) -> None:
    assert client.get(f"/images/{name}").status_code == 404


@pytest.mark.parametrize(
    ("changes", "code", "parameter"),
    [
        ({"taskUUID": ...}, "missingTaskUUID", "taskUUID"),
        ({"taskUUID": "not-a-uuid"}, "invalidTaskUUID", "taskUUID"),
        ({"model": ...}, "missingModel", "model"),
        ({"model": "runware:1@1"}, "invalidModel", "model"),
        ({"positivePrompt": ...}, "missingPositivePrompt", "positivePrompt"),
        ({"positivePrompt": None}, "missingPositivePrompt", "positivePrompt"),
        ({"positivePrompt": ""}, "invalidPositivePrompt", "positivePrompt"),
        ({"positivePrompt": "x"}, "invalidPositivePrompt", "positivePrompt"),
        ({"positivePrompt": "x" * 4000}, "invalidPositivePrompt", "positivePrompt"),
        ({"positivePrompt": 5}, "invalidPositivePrompt", "positivePrompt"),
        ({"negativePrompt": "x"}, "invalidNegativePrompt", "negativePrompt"),
        ({"width": 1024}, "missingHeight", "height"),
        ({"height": 1024}, "missingWidth", "width"),
        ({"width": 512, "height": 512}, "unsupportedDimensions", ["width", "height"]),
        ({"width": 1024.5, "height": 1024}, "invalidWidth", "width"),
        ({"seed": -1}, "invalidSeed", "seed"),
        ({"seed": MAX_SEED + 1}, "invalidSeed", "seed"),
        ({"seed": True}, "invalidSeed", "seed"),
        ({"steps": 0}, "invalidSteps", "steps"),
        ({"steps": 101}, "invalidSteps", "steps"),
        ({"steps": "20"}, "invalidSteps", "steps"),
        ({"CFGScale": 1.0}, "invalidCFGScale", "CFGScale"),
        ({"CFGScale": 50.5}, "invalidCFGScale", "CFGScale"),
        ({"CFGScale": 7.005}, "invalidCFGScale", "CFGScale"),
        ({"numberResults": 21}, "invalidNumberResults", "numberResults"),
        ({"outputType": "file"}, "invalidOutputType", "outputType"),
        ({"outputType": []}, "invalidOutputType", "outputType"),
        ({"outputFormat": "TIFF"}, "invalidOutputFormat", "outputFormat"),
        ({"outputQuality": 100}, "invalidOutputQuality", "outputQuality"),
        ({"seedImage": "x"}, "unsupportedParameter", "seedImage"),
        ({"taskType": ...}, "missingTaskType", "taskType"),
        ({"taskType": "videoInference"}, "unsupportedTaskType", "taskType"),
    ],
)
def test_a_faulty_parameter_is_named_with_its_code(
    client: TestClient, engine: Any, changes: dict[str, Any], code: str, parameter: object
) -> None:
    error = refusal(client, **changes)
    assert (error["code"], error["parameter"]) == (code, parameter)
    assert len(error["message"]) > 20
    assert engine.jobs == []


def test_an_error_says_what_would_be_right(client: TestClient) -> None:
    error = refusal(client, steps=500)
    assert (error["type"], error["min"], error["max"]) == ("integer", 1, 100)
    assert "500" in error["message"]
    sizes = refusal(client, width=512, height=512)["allowedValues"]
    assert len(sizes) == 17
    assert "1536x512" in sizes


def test_faults_are_reported_in_the_apis_order(client: TestClient) -> None:
    faults = {"unknownKey": 1, "model": ..., "positivePrompt": "", "steps": 0}
    codes = []
    for fixed in ("unknownKey", "model", "positivePrompt", "steps"):
        codes.append(refusal(client, **faults)["code"])
        del faults[fixed]
    assert codes == [
        "unsupportedParameter",
        "missingModel",
        "invalidPositivePrompt",
        "invalidSteps",
    ]


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


def test_a_full_queue_answers_429_and_recovers(client: TestClient, engine: Any) -> None:
    engine.is_held = True
    first: list[int] = []
    sender = threading.Thread(
        target=lambda: first.append(
            client.post("/v1", json=[make_task(numberResults=20)]).status_code
        )
    )
    sender.start()
    while not engine.jobs:
        time.sleep(0.01)
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
    client: TestClient, engine: Any, code: str, status: int
) -> None:
    engine.failure = (code, "it did not work")
    task = make_task()
    response = client.post("/v1", json=[task])
    assert response.status_code == status
    (error,) = response.json()["errors"]
    assert (error["code"], error["taskUUID"]) == (code, task["taskUUID"])


def test_no_prompt_is_asked_for_with_a_blank(client: TestClient, engine: Any) -> None:
    client.post("/v1", json=[make_task(positivePrompt="__BLANK__")])
    assert engine.jobs[0].request.prompt == ""


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


def test_health_and_readiness_are_told_apart(client: TestClient, engine: Any) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"ready": True, "worker": "fake"}
    engine.status = type(engine.status)(is_ready=False, description="loading")
    assert client.get("/ready").status_code == 503
    assert client.get("/health").status_code == 200


def test_the_openapi_page_shows_every_parameter_with_its_bounds(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/v1"]["post"]
    items = operation["requestBody"]["content"]["application/json"]["schema"]["items"]
    assert items["properties"].keys() == ImageInference.model_fields.keys()
    assert all(field.get("description") for field in items["properties"].values())
    assert items["properties"]["steps"]["maximum"] == 100


def test_the_api_never_imports_torch() -> None:
    code = "import sys, server.app, server.engine.local; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_a_stranger_named_like_our_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "__init__.py").write_text("")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "from server.import_guard import check_imports; check_imports()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], timeout=60, check=False, capture_output=True
    )
    assert done.returncode == 1
    assert b"'cache' comes from" in done.stderr


def test_a_request_id_comes_back_or_is_made(client: TestClient) -> None:
    assert (
        client.get("/health", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    )
    made = [client.get("/health").headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    forged = client.get("/health", headers={"X-Request-ID": "a b"}).headers["x-request-id"]
    assert " " not in forged


def test_metrics_count_images_and_refusals(client: TestClient) -> None:
    client.post("/v1", json=[make_task(numberResults=3), make_task(model="other")])
    page = client.get("/metrics").text
    assert "hyimage_images_total 3.0" in page
    assert 'hyimage_tasks_total{end="success"} 1.0' in page
    assert 'hyimage_refusals_total{code="invalidModel"} 1.0' in page
    assert "hyimage_ready 1.0" in page


def test_the_openai_form_generates_the_same_task(client: TestClient, engine: Any) -> None:
    body = {"prompt": "a red fox", "n": 2, "size": "1280x768", "response_format": "b64_json"}
    answer = client.post("/v1/images/generations", json=body)
    assert answer.status_code == 200
    assert len(answer.json()["data"]) == 2
    assert base64.b64decode(answer.json()["data"][0]["b64_json"]).startswith(b"image")
    (job,) = engine.jobs
    assert (job.request.prompt, job.request.width_px, job.request.height_px, job.image_format) == (
        "a red fox", 1280, 768, "PNG"
    )  # fmt: skip
    url = client.post("/v1/images/generations", json={"prompt": "a red fox"}).json()
    assert client.get(url["data"][0]["url"]).status_code == 200


@pytest.mark.parametrize(
    ("changes", "status", "parameter"),
    [
        ({"size": "512x512"}, 400, None),
        ({"size": "big"}, 400, "size"),
        ({"prompt": "x"}, 400, "positivePrompt"),
        ({"model": "dall-e-3"}, 400, "model"),
        ({"style": "vivid"}, 422, None),
    ],
)
def test_the_openai_form_is_refused_in_its_own_words(
    client: TestClient, changes: dict[str, Any], status: int, parameter: str | None
) -> None:
    answer = client.post("/v1/images/generations", json={"prompt": "a red fox", **changes})
    assert answer.status_code == status
    if status == 400:
        assert answer.json()["error"]["param"] == parameter
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("size", "steps", "cost"),
    [
        ((1536, 512), 32, 0.1453),
        ((1280, 768), 30, 0.1735),
        ((1472, 576), 30, 0.1491),
        ((1344, 704), 30, 0.1671),
    ],
)
def test_the_default_prices_are_those_of_the_published_examples(
    client: TestClient, size: tuple[int, int], steps: int, cost: float
) -> None:
    task = make_task(width=size[0], height=size[1], steps=steps, includeCost=True)
    (item,) = client.post("/v1", json=[task]).json()["data"]
    assert item["cost"] == pytest.approx(cost, rel=0.03)


def test_a_check_that_cannot_be_made_is_refused(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr("server.delivery.safety.importlib.util.find_spec", lambda name: None)
    error = refusal(client, safety={"checkContent": True})
    assert (error["code"], error["parameter"]) == ("unsupportedSafetyCheck", "safety")
    assert refusal(client, checkNSFW=True)["parameter"] == "safety"


def test_a_broken_store_is_503_and_the_task_can_be_sent_again(
    client: TestClient, settings: Settings, engine: Any
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
    client: TestClient, engine: Any
) -> None:
    task = make_task()
    engine.failure = ("inferenceError", "it did not work")
    assert client.post("/v1", json=[task]).status_code == 500
    engine.failure = None
    assert client.post("/v1", json=[task]).status_code == 200
    client.app.state.tasks.drain()  # type: ignore[attr-defined]
    assert client.post("/v1", json=[task]).status_code == 503
    poll = [{"taskType": "getResponse", "taskUUID": task["taskUUID"]}]
    assert client.post("/v1", json=poll).json()["data"][0]["status"] == "success"


def test_an_image_is_gone_when_its_time_is_over(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.tasks.service.SWEEP_EVERY_S", 0.05)
    upload = {"taskType": "imageUpload", "image": f"data:image/png;base64,{TINY_PNG}"}
    (sent,) = client.post("/v1", json=[upload]).json()["data"]
    (generated,) = client.post("/v1", json=[make_task(ttl=60)]).json()["data"]
    for url in (sent["imageURL"], generated["imageURL"]):
        assert client.get(url).status_code == 200
    database = settings.tasks.database_url.removeprefix("sqlite:///")
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE images SET expires_at = 1")
    connection.close()
    deadline = time.monotonic() + 20
    while any(
        client.get(url).status_code == 200 for url in (sent["imageURL"], generated["imageURL"])
    ):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not [f for f in Path(settings.images.store).rglob("*") if f.is_file()]
