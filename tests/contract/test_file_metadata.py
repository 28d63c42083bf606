"""Files that carry their parameters or the mark of generation, as the settings have it."""

import base64
import io
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import numpy as np
from fastapi.testclient import TestClient
from PIL import Image

from pipeline.encode import encode_image
from server.delivery.file_metadata import KEYWORD
from server.engine.messages import Job, JobEvent, JobImage
from server.settings import Settings
from tests.contract.conftest import FakeEngine, change, make_task

NewClient = Callable[..., TestClient]
PIXELS = np.zeros((8, 8, 3), np.uint8)


class PaintingEngine(FakeEngine):
    """Its images are real files, of one colour; a rewritten prompt is in their diagnostics."""

    async def submit(self, job: Job) -> AsyncIterator[JobEvent]:
        async for event in super().submit(job):
            if isinstance(event, JobImage) and event.diagnostics is not None:
                encoded = encode_image(PIXELS, "PNG", 95)
                diagnostics = replace(event.diagnostics, text="a fox, rewritten")
                event = replace(event, encoded=encoded, diagnostics=diagnostics)
            yield event


def info_of(encoded: bytes) -> dict[Any, Any]:
    with Image.open(io.BytesIO(encoded)) as image:
        return dict(image.info)


def generate(client: TestClient, **changes: Any) -> list[dict[str, Any]]:
    task = make_task(outputFormat="PNG", seed=5, **changes)
    data: list[dict[str, Any]] = client.post("/v1", json=[task]).json()["data"]
    return data


def test_a_file_says_nothing_by_default(new_client: NewClient, settings: Settings) -> None:
    client = new_client(settings, PaintingEngine())
    (item,) = generate(client)
    assert client.get(item["imageURL"]).content == encode_image(PIXELS, "PNG", 95)


def test_each_file_has_the_parameters_of_its_task_and_its_own_seed(
    new_client: NewClient, settings: Settings
) -> None:
    client = new_client(change(settings, images__embed_parameters=True), PaintingEngine())
    options = {"numberResults": 2, "CFGScale": 3, "negativePrompt": "rain", "ttl": 60}
    items = generate(client, width=1024, height=1024, **options)
    found = [json.loads(info_of(client.get(i["imageURL"]).content)[KEYWORD]) for i in items]
    assert found[0] == {
        "taskType": "imageInference", "model": "runware:180@1", "positivePrompt": "a red fox",
        "negativePrompt": "rain", "width": 1024, "height": 1024, "seed": 5, "steps": 20,
        "CFGScale": 3.0, "scheduler": "Default", "text": "a fox, rewritten",
    }  # fmt: skip
    assert found[1] == {**found[0], "seed": 6}


def test_an_image_in_the_answer_has_the_same_mark_as_the_stored_one(
    new_client: NewClient, settings: Settings
) -> None:
    client = new_client(change(settings, images__mark_generated=True), PaintingEngine())
    (item,) = generate(client, outputType=["URL", "base64Data"])
    stored = client.get(item["imageURL"]).content
    assert base64.b64decode(item["imageBase64Data"]) == stored
    assert b"trainedAlgorithmicMedia" in info_of(stored)["xmp"]
    assert KEYWORD not in info_of(stored)
