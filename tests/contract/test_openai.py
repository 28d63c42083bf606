"""The OpenAI form of the same tasks, as its clients call it."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

from server.app import create_app
from server.settings import Settings
from server.tasks.key_file import add_key
from tests.contract.conftest import FakeEngine
from tests.contract.test_words import change_checkpoint

PATH = "/v1/images/generations"
NULLS = (
    "background", "model", "moderation", "n", "output_compression", "output_format",
    "partial_images", "quality", "response_format", "size", "stream", "style", "user",
)  # fmt: skip


@pytest.fixture
def sdk(client: TestClient) -> Iterator[openai.OpenAI]:
    """Yield the official SDK, whose requests go to the application in this process."""
    with openai.OpenAI(
        api_key="any", base_url="http://example.test:8000/v1", http_client=client, max_retries=0
    ) as sdk:
        yield sdk


def refused(client: TestClient, **changes: Any) -> dict[str, Any]:
    """Send a request that is refused with 400; return OpenAI's error object."""
    body = {"prompt": "a red fox", **changes}
    answer = client.post(PATH, json={k: v for k, v in body.items() if v is not ...})
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


def test_the_openai_form_generates_the_same_task(client: TestClient, engine: FakeEngine) -> None:
    body = {"prompt": "a red fox", "n": 2, "size": "1280x768", "response_format": "b64_json"}
    answer = client.post(PATH, json=body)
    assert answer.status_code == 200
    assert len(answer.json()["data"]) == 2
    assert base64.b64decode(answer.json()["data"][0]["b64_json"]).startswith(b"image")
    assert (answer.json()["size"], answer.json()["output_format"]) == ("1280x768", "png")
    (job,) = engine.jobs
    assert (job.request.prompt, job.request.width_px, job.request.height_px, job.image_format) == (
        "a red fox", 1280, 768, "PNG"
    )  # fmt: skip
    url = client.post(f"{PATH}/", json={"prompt": "a red fox"}).json()
    assert client.get(url["data"][0]["url"]).status_code == 200
    assert url["size"] == "1344x704"  # what the engine of these tests chooses


def test_the_sdk_generates_with_every_optional_parameter_null(sdk: openai.OpenAI) -> None:
    nulls: dict[str, Any] = dict.fromkeys(NULLS)
    answer = sdk.images.generate(prompt="a red fox", **nulls)
    assert answer.data is not None
    assert answer.data[0].url is not None


def test_the_sdk_generates_with_every_optional_parameter_set(
    sdk: openai.OpenAI, engine: FakeEngine
) -> None:
    answer = sdk.images.generate(
        prompt="a red fox",
        background="opaque",
        model="gpt-image-1",
        moderation="low",
        n=2,
        output_compression=100,
        output_format="jpeg",
        partial_images=0,
        quality="high",
        response_format="b64_json",
        size="1536x1024",
        stream=False,
        style="vivid",
        user="somebody",
        extra_body={"seed": 5, "negative_prompt": "blurry", "guidance_scale": 4.5},
    )
    assert answer.data is not None
    assert [base64.b64decode(image.b64_json or "") for image in answer.data] == [
        b"image 5",
        b"image 6",
    ]
    (job,) = engine.jobs
    assert (job.request.num_steps, job.request.guidance, job.request.negative_prompt) == (
        50,
        4.5,
        "blurry",
    )
    assert (job.quality, job.image_format) == (99, "JPG")


def test_the_sdk_lists_models_and_shows_errors(sdk: openai.OpenAI) -> None:
    models = [model.id for model in sdk.models.list()]
    assert models[0] == "runware:180@1"
    assert sdk.models.retrieve("runware:180@1").owned_by == "tencent"
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("other")
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.images.generate(prompt="a red fox", n=21)
    assert (caught.value.param, caught.value.code) == ("n", "invalid_value")
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        ("256x256", (1024, 1024)),
        ("512x512", (1024, 1024)),
        ("1024x1024", (1024, 1024)),
        ("1536x1024", (1216, 832)),
        ("1024x1536", (832, 1216)),
        ("1792x1024", (1280, 768)),
        ("1024x1792", (768, 1280)),
    ],
)
def test_openais_sizes_are_answered_at_the_nearest_shape(
    client: TestClient, engine: FakeEngine, size: str, drawn: tuple[int, int]
) -> None:
    answer = client.post(PATH, json={"prompt": "a red fox", "size": size})
    request = engine.jobs[0].request
    assert (request.width_px, request.height_px) == drawn
    assert answer.json()["size"] == f"{drawn[0]}x{drawn[1]}"


@pytest.mark.parametrize(
    ("model", "form"),
    [("dall-e-3", "url"), ("gpt-image-1", "b64_json"), ("tencent-hunyuanimage-3-0", "url")],
)
def test_the_names_of_openais_models_mean_the_served_one(
    client: TestClient, model: str, form: str
) -> None:
    answer = client.post(PATH, json={"prompt": "a red fox", "model": model})
    assert answer.json()["data"][0].keys() == {form}


def test_the_compression_is_brought_into_the_offered_range(
    client: TestClient, engine: FakeEngine
) -> None:
    for compression in (0, 50.0, 100):
        client.post(PATH, json={"prompt": "a red fox", "output_compression": compression})
    assert [job.quality for job in engine.jobs] == [20, 50, 99]


def test_quality_is_a_number_of_steps_except_on_a_distilled_checkpoint(
    settings: Settings, engine: FakeEngine, client: TestClient
) -> None:
    for quality in ("low", "auto", "hd"):
        client.post(PATH, json={"prompt": "a red fox", "quality": quality})
    client.post(PATH, json={"prompt": "a red fox", "quality": "hd", "steps": 7})
    change_checkpoint(settings, "config.json", cfg_distilled=True, use_meanflow=True)
    change_checkpoint(settings, "generation_config.json", diff_infer_steps=8)
    with TestClient(create_app(settings, engine)) as distilled:
        distilled.post(PATH, json={"prompt": "a red fox", "quality": "hd"})
    assert [job.request.num_steps for job in engine.jobs] == [10, 20, 50, 7, 8]


@pytest.mark.parametrize(
    ("changes", "parameter", "code"),
    [
        ({"size": "500x500"}, "size", "invalid_value"),
        ({"size": "big"}, "size", "invalid_value"),
        ({"size": 5}, "size", "invalid_type"),
        ({"prompt": "x"}, "prompt", "invalid_value"),
        ({"prompt": ...}, "prompt", "missing_required_parameter"),
        ({"prompt": None}, "prompt", "missing_required_parameter"),
        ({"model": "sd-xl"}, "model", "invalid_value"),
        ({"n": 21}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_type"),
        ({"colour": "red"}, "colour", "unknown_parameter"),
        ({"background": "transparent"}, "background", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"partial_images": 2}, "partial_images", "invalid_value"),
        ({"output_compression": 101}, "output_compression", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"steps": 101}, "steps", "invalid_value"),
        ({"guidance_scale": 99}, "guidance_scale", "invalid_value"),
        ({"negative_prompt": "x"}, "negative_prompt", "invalid_value"),
    ],
)
def test_a_fault_is_named_as_its_caller_names_it(
    client: TestClient, engine: FakeEngine, changes: dict[str, Any], parameter: str, code: str
) -> None:
    error = refused(client, **changes)
    assert (error["param"], error["code"]) == (parameter, code)
    assert parameter in error["message"]
    words = ("positivePrompt", "numberResults", "CFGScale", "None", "True")
    assert not [word for word in words if word in error["message"]]
    assert engine.jobs == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400), (b"[" * 50_000, 400), (b'{"prompt":"\xff"}', 400), (b"[]", 400), (b"", 400),
        (b'{"prompt":"a fox","n":NaN}', 400), (b'{"prompt":"a fox","n":1e999}', 400),
        (b'{"size":"\\ud800"}', 400), (b'{"\\ud800":1}', 400), (b" " * 200_000, 413),
        (b'{"prompt":"a fox","seed":[[]]}', 400),
    ],
)  # fmt: skip
def test_no_body_whatever_breaks_the_form(client: TestClient, body: bytes, status: int) -> None:
    answer = client.post(PATH, content=body)
    assert answer.status_code == status
    assert answer.json()["error"]["code"]


def test_a_prompt_may_be_longer_than_runwares(client: TestClient, engine: FakeEngine) -> None:
    """The positions of the model are the limit, and this one has a token for each letter."""
    prompt = "a fox " * 510
    answer = client.post(PATH, json={"prompt": prompt})
    assert answer.status_code == 200 or answer.json()["error"]["code"] != "invalid_value"
    too_long = refused(client, prompt="qzx " * 10_000)
    assert (too_long["param"], too_long["code"]) == ("prompt", "string_above_max_length")


def test_the_key_comes_before_the_body(settings: Settings, engine: FakeEngine) -> None:
    key = add_key(Path(settings.keys.file), "one")
    with TestClient(create_app(settings, engine)) as client:
        for path in ("/v1/models", "/v1/models/runware:180@1"):
            assert client.get(path).status_code == 401
        answer = client.post(PATH, content=b"{")
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("invalid_api_key", None)
        headers = {"Authorization": f"Bearer {key}"}
        assert client.post(PATH, content=b"{", headers=headers).status_code == 400
        assert client.get("/v1/models/runware:180@1/schema.json").json()["properties"]["steps"]


def test_a_full_queue_says_when_to_return(settings: Settings, engine: FakeEngine) -> None:
    limits = settings.server.model_copy(update={"max_queued_images": 1})
    changed = settings.model_copy(update={"server": limits})
    with TestClient(create_app(changed, engine)) as client:
        answer = client.post(PATH, json={"prompt": "a red fox", "n": 2})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1", 405), ("PUT", "/v1", 405), ("GET", PATH, 405), ("POST", "/v1/none", 404),
        ("POST", "/v1/images/edits", 400), ("POST", "/v1/chat/completions", 404),
    ],
)  # fmt: skip
def test_unknown_paths_and_methods_get_an_envelope(
    client: TestClient, method: str, path: str, status: int
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"].keys() >= {"message", "type", "param", "code"}
    if path == "/v1":
        assert answer.json()["errors"][0]["code"] == "unsupportedMethod"
        assert "POST" in answer.headers["allow"]
