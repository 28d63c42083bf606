"""Bodies that clients of the OpenAI form send with their defaults, and what they read of answers.

Source: read in the clients' sources on 2026-11-23; the findings are in docs/clients.md.
"""

import base64
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.contract.conftest import FakeEngine

OPEN_WEBUI = {
    "model": "dall-e-2",
    "prompt": "a red fox",
    "n": 1,
    "size": "512x512",
    "response_format": "b64_json",
}
LIBRECHAT_DALLE = {
    "model": "dall-e-3",
    "prompt": "a red fox",
    "n": 1,
    "quality": "standard",
    "style": "vivid",
    "size": "1792x1024",
}
LIBRECHAT_TOOLS = {
    "model": "gpt-image-1",
    "prompt": "a red fox",
    "n": 1,
    "size": "auto",
    "quality": "auto",
    "background": "auto",
    "output_compression": 100,
}
AI_SDK = {
    "model": "runware:180@1",
    "prompt": "a red fox",
    "n": 2,
    "size": "1024x1024",
    "response_format": "b64_json",
}


@pytest.mark.parametrize(
    ("body", "form", "size"),
    [
        (OPEN_WEBUI, "b64_json", "1024x1024"),
        (LIBRECHAT_DALLE, "url", "1280x768"),
        (LIBRECHAT_TOOLS, "b64_json", "1344x704"),  # what the engine of these tests chooses
        (AI_SDK, "b64_json", "1024x1024"),
    ],
    ids=["Open WebUI", "LibreChat DALLE3", "LibreChat OpenAIImageTools", "Vercel AI SDK"],
)
def test_a_client_with_its_defaults_gets_what_it_reads(
    client: TestClient, engine: FakeEngine, body: dict[str, Any], form: str, size: str
) -> None:
    answer = client.post("/v1/images/generations", json=body)
    assert answer.status_code == 200, answer.text
    images = answer.json()["data"]
    assert (len(images), answer.json()["size"]) == (body["n"], size)
    if form == "url":
        assert client.get(images[0]["url"]).content.startswith(b"image")
    else:
        assert base64.b64decode(images[0]["b64_json"]).startswith(b"image")
    assert "usage" not in answer.json()  # one client refuses an incomplete one
