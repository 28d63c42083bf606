"""Edits on a real server: the official client with images, and a server that is killed."""

import asyncio
import base64
import io
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from runware import Runware, RunwareError

from tests.conftest import SMALL_CONFIG
from tests.listener import Listener
from tests.system.conftest import ServerProcess
from tests.waiting import wait_until
from training.random_checkpoint import write_random_checkpoint

pytestmark = pytest.mark.slow

TASK = {
    "taskType": "imageInference",
    "model": "runware:180@1",
    "positivePrompt": "make it night",
    "width": 256,
    "height": 256,
    "steps": 2,
    "seed": 5,
    "outputFormat": "PNG",
}


def data_uri(shade: int) -> str:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((90, 60 + shade)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


FIRST, SECOND = data_uri(0), data_uri(30)


def content_of(uri: str) -> bytes:
    return base64.b64decode(uri.partition(",")[2])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    checkpoint = tmp_path_factory.mktemp("editing")
    generation = {"sequence_template": "instruct"}
    write_random_checkpoint(checkpoint, SMALL_CONFIG, generation=generation)
    server = ServerProcess(
        tmp_path_factory.mktemp("server"),
        checkpoint,
        HYIMAGE_WORKER__IMAGE_INPUTS="true",
        HYIMAGE_EGRESS__ALLOWED_NETWORKS='["127.0.0.0/8"]',
    )
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


def pixels(server: ServerProcess, items: list[dict[str, Any]]) -> list[bytes]:
    return [server.get(item["imageURL"])[0] for item in items]


def drawn(server: ServerProcess, **changes: Any) -> list[bytes]:
    envelope = server.post({**TASK, "taskUUID": str(uuid.uuid4()), **changes})
    assert "errors" not in envelope, envelope
    return pixels(server, envelope["data"])


async def edit(url: str, references: list[str]) -> list[dict[str, Any]]:
    client = Runware(
        api_key="any-key",
        transport="websocket",
        http_base_url=f"{url}/v1",
        ws_base_url=f"{url.replace('http', 'ws')}/v1",
        max_retries=1,
    )
    await client.connect()
    try:
        task = {**TASK, "taskUUID": str(uuid.uuid4()), "referenceImages": references}
        results: list[dict[str, Any]] = await client.run(task)
        with pytest.raises(RunwareError, match=r"referenceImages\[1\]"):
            await client.run({**task, "referenceImages": [FIRST, "cat.png"]})
        return results
    finally:
        await client.close()


def test_the_official_client_edits_an_upload_and_a_data_uri(server: ServerProcess) -> None:
    (upload,) = server.post({"taskType": "imageUpload", "image": FIRST})["data"]
    results = asyncio.run(asyncio.wait_for(edit(server.url, [upload["imageUUID"], SECOND]), 120))
    edited = pixels(server, results)
    assert edited == drawn(server, seedImage=FIRST, referenceImages=[SECOND])
    assert edited != drawn(server, seedImage=SECOND, referenceImages=[FIRST])
    assert edited != drawn(server)


def test_an_edit_that_was_killed_goes_on_with_the_bytes_that_were_fetched(
    server: ServerProcess, listener: Listener
) -> None:
    listener.content = content_of(FIRST)
    edit = {"numberResults": 2, "steps": 15, "hunyuan": {"align": True}}
    references = {"referenceImages": [f"{listener.url}/a.png", SECOND]}
    task_uuid = str(uuid.uuid4())
    server.post({**TASK, **edit, **references, "taskUUID": task_uuid, "deliveryMethod": "async"})
    poll = {"taskType": "getResponse", "taskUUID": task_uuid}
    wait_until(lambda: server.post(poll)["data"][0].get("progress", 0) > 0)
    server.stop()
    assert server.rows("SELECT status FROM tasks ORDER BY created_at")[-1] == ("running",)
    listener.content = content_of(SECOND)
    server.start()
    items = server.wait_for(task_uuid)
    assert pixels(server, items) == drawn(server, **edit, referenceImages=[FIRST, SECOND])
    assert len(listener.received) == 1
