"""The OpenAI form of the same tasks."""

import base64
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.contract.conftest import FakeEngine


def test_the_openai_form_generates_the_same_task(client: TestClient, engine: FakeEngine) -> None:
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
