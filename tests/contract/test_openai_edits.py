"""Edits in the OpenAI form, by the official SDK and as raw forms."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from fastapi.testclient import TestClient

from tests.contract.conftest import FakeEngine, data_uri, picture
from tests.contract.malformed_images import cut

PATH = "/v1/images/edits"
PNG, JPEG = picture(1), picture(2, "JPEG")


@pytest.fixture
def sdk(editor: TestClient) -> Iterator[openai.OpenAI]:
    """Yield the official SDK, whose requests go to the application in this process."""
    with openai.OpenAI(
        api_key="any", base_url="http://example.test:8000/v1", http_client=editor, max_retries=0
    ) as sdk:
        yield sdk


def refused(client: TestClient, files: Any, **fields: str) -> dict[str, Any]:
    """Send a form that is refused with 400; return OpenAI's error object."""
    answer = client.post(PATH, files=files, data={"prompt": "make it night", **fields})
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def test_the_sdk_edits_one_image(sdk: openai.OpenAI, engine: FakeEngine) -> None:
    answer = sdk.images.edit(image=PNG, prompt="make it night", model="gpt-image-1")
    assert answer.data is not None
    assert base64.b64decode(answer.data[0].b64_json or "").startswith(b"image")
    (job,) = engine.jobs
    assert (job.request.prompt, job.request.images) == ("make it night", (PNG,))
    assert job.request.width_px is None


def test_the_sdk_edits_several_images_with_every_parameter_set(
    sdk: openai.OpenAI, engine: FakeEngine
) -> None:
    answer = sdk.images.edit(
        image=[("a.png", PNG, "image/png"), ("b.jpg", JPEG), PNG],
        prompt="put the first on the second",
        background="opaque",
        input_fidelity="high",
        model="gpt-image-1",
        n=2,
        output_compression=90,
        output_format="jpeg",
        partial_images=0,
        quality="high",
        response_format="url",
        size="1536x1024",
        stream=False,
        user="somebody",
        extra_body={"seed": 5, "guidance_scale": 4.5},
    )
    assert answer.data is not None
    assert all(image.url and image.url.endswith(".jpg") for image in answer.data)
    (job,) = engine.jobs
    request = job.request
    assert request.images == (PNG, JPEG, PNG)
    assert (request.seeds, request.guidance, request.num_steps) == ((5, 6), 4.5, 50)
    assert (request.width_px, request.height_px, job.quality) == (1216, 832, 90)


def test_the_sdk_streams_an_edit(sdk: openai.OpenAI) -> None:
    stream = sdk.images.edit(image=PNG, prompt="make it night", stream=True)
    events = list(stream)
    assert [event.type for event in events] == ["image_edit.completed"]
    assert base64.b64decode(events[0].b64_json).startswith(b"image")


def test_the_sdk_shows_why_an_image_is_refused(sdk: openai.OpenAI, engine: FakeEngine) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.images.edit(image=[PNG, cut("JPEG")], prompt="make it night")
    assert (caught.value.param, caught.value.code) == ("image[1]", "invalid_value")
    assert "'image[1]'" in caught.value.message
    assert "damaged or cut short" in caught.value.message
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.images.edit(image=PNG, mask=PNG, prompt="make it night")
    assert caught.value.param == "mask"
    assert engine.jobs == []


def test_a_mask_of_a_form_that_takes_no_images_says_so_first(client: TestClient) -> None:
    error = refused(client, {"image": PNG, "mask": PNG})
    assert error["param"] == "image"
    assert "Instruct" in error["message"]


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_images_may_be_sent_under_either_name_and_as_texts(
    editor: TestClient, engine: FakeEngine, name: str
) -> None:
    files = [(name, ("a.png", PNG)), (name, ("b", JPEG))]
    fields = {"prompt": "make it night", "n": "", "stream": "false", "output_format": "webp"}
    answer = editor.post(f"{PATH}/", files=files, data=fields)
    assert answer.status_code == 200, answer.text
    assert answer.json()["output_format"] == "webp"
    (job,) = engine.jobs
    assert job.request.images == (PNG, JPEG)
    parts = [("prompt", (None, "make it night")), (name, (None, data_uri(PNG)))]
    assert editor.post(PATH, files=parts).is_success
    assert engine.jobs[1].request.images == (PNG,)


@pytest.mark.parametrize(
    ("changes", "parameter", "code"),
    [
        ({"n": "21"}, "n", "invalid_value"),
        ({"n": "many"}, "n", "invalid_value"),
        ({"n": "3.5"}, "n", "invalid_value"),
        ({"stream": "perhaps"}, "stream", "invalid_value"),
        ({"size": "500x500"}, "size", "invalid_value"),
        ({"prompt": ""}, "prompt", "missing_required_parameter"),
        ({"prompt": "x"}, "prompt", "invalid_value"),
        ({"model": "sd-xl"}, "model", "invalid_value"),
        ({"background": "transparent"}, "background", "invalid_value"),
        ({"partial_images": "2"}, "partial_images", "invalid_value"),
        ({"mask": "x"}, "mask", "invalid_value"),
        ({"output_format": "svg"}, "output_format", "invalid_value"),
        ({"frame_count": "3"}, "frame_count", "unknown_parameter"),
    ],
)
def test_a_fault_of_a_field_is_named(
    editor: TestClient, engine: FakeEngine, changes: dict[str, str], parameter: str, code: str
) -> None:
    error = refused(editor, {"image": PNG}, **changes)
    assert (error["param"], error["code"]) == (parameter, code)
    assert engine.jobs == []


@pytest.mark.parametrize(
    ("files", "parameter", "words"),
    [
        ([("other", ("a", b"x"))], "other", "a file"),
        ([("image", ("a", b""))], "image[0]", "empty"),
        ([("image", ("a.html", b"<html>"))], "image[0]", "HTML"),
        ([("image[]", ("a", PNG))] * 4, "image", "4 images; at most 3"),
        ([("image[]", ("a", PNG))] * 17, None, "Too many files"),
        ([("note", (None, "x"))], "note", "Unknown parameter"),
        ([("user", (None, "x"))], "image", "Missing required parameter"),
    ],
)
def test_a_fault_of_a_file_is_named(
    editor: TestClient, engine: FakeEngine, files: Any, parameter: str | None, words: str
) -> None:
    error = refused(editor, files)
    assert error["param"] == parameter
    assert words in error["message"]
    assert engine.jobs == []


FORM = "multipart/form-data; boundary=a"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{}", "application/json"),
        (b"prompt=x", "application/x-www-form-urlencoded"),
        (b"", ""),
        (b"", "multipart/form-data"),
        (b"rubbish", "multipart/form-data"),
        (b"rubbish", FORM),
        (b'--a\r\nContent-Disposition: form-data; name="image"\r\n\r\n', FORM),
        (b"--a\r\nContent-Disposition: form-data\r\n\r\nx\r\n--a--", FORM),
        (b"--a\r\nContent-Disposition\r\n\r\nx\r\n--a--", FORM),
        (b'--a\r\nContent-Disposition: form-data; name="user"\r\n\r\n\xff\r\n--a--\r\n', FORM),
    ],
)
def test_no_form_whatever_breaks_the_server(editor: TestClient, body: bytes, kind: str) -> None:
    answer = editor.post(PATH, content=body, headers={"content-type": kind})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"]


def test_a_form_that_is_too_large_is_413(editor: TestClient) -> None:
    answer = editor.post(PATH, files={"image": bytes(200_000)}, data={"prompt": "make it night"})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


def test_the_schema_of_a_form_has_its_files_and_no_nulls(editor: TestClient) -> None:
    page = editor.get("/openapi.json").json()
    content = page["paths"][PATH]["post"]["requestBody"]["content"]
    assert content.keys() == {"multipart/form-data"}
    schema = page["components"]["schemas"]["ImageEdit"]
    assert "null" not in json.dumps(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid({"prompt": "a fox", "image": ["x", "y"], "n": 2})
    assert validator.is_valid({"prompt": "a fox", "image[]": ["x"]})
    assert not validator.is_valid({"prompt": "a fox"})
    assert not validator.is_valid({"prompt": "a fox", "image": ["x"] * 4})
    assert not validator.is_valid({"prompt": "a fox", "image": "x", "mask": "x"})
