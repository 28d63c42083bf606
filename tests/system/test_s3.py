"""Images in an S3 bucket: a real server process of moto's on loopback."""

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import httpx
import pytest
from fastapi.testclient import TestClient
from moto.server import ThreadedMotoServer

from server.app import create_app
from server.delivery.images import ImageStore
from server.image_settings import ImageSettings
from server.runware.errors import TaskError
from server.settings import SettingsError, load_settings
from tools.bench.serve import StubEngine, settings_within

BUCKET = "images"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    boto3.client("s3", endpoint_url=url).create_bucket(Bucket=BUCKET)
    yield url
    server.stop()


def new_store() -> ImageStore:
    """Return a store of its own connections; fsspec would share those of the last test."""
    store = ImageStore(f"s3://{BUCKET}/{uuid.uuid4()}")
    store._filesystem.clear_instance_cache()
    return store


def test_an_image_is_kept_served_and_deleted(endpoint: str) -> None:
    store, name = new_store(), f"{uuid.uuid4()}.webp"

    async def use() -> None:
        assert await store.load(name) is None
        await store.save(name, b"image")
        assert await store.load(name) == b"image"
        await store.delete([name, f"{uuid.uuid4()}.png"])
        assert await store.load(name) is None

    asyncio.run(use())


def test_an_object_carries_its_content_type(endpoint: str) -> None:
    store, name = new_store(), f"{uuid.uuid4()}.jpg"
    asyncio.run(store.save(name, b"image"))
    key = f"{store._root.removeprefix(BUCKET + '/')}/{name}"
    head = boto3.client("s3", endpoint_url=endpoint).head_object(Bucket=BUCKET, Key=key)
    assert head["ContentType"] == "image/jpeg"


def test_a_signed_url_serves_the_image_without_the_server(endpoint: str) -> None:
    store, name = (
        ImageStore(f"s3://{BUCKET}/{uuid.uuid4()}", is_signing=True),
        f"{uuid.uuid4()}.png",
    )
    store._filesystem.clear_instance_cache()

    async def use() -> str:
        await store.save(name, b"image")
        return await store.sign(name, 60)

    url = asyncio.run(use())
    assert url.startswith(endpoint)
    answer = httpx.get(url)
    assert (answer.content, answer.headers["content-type"]) == (b"image", "image/png")
    signed = {key.partition("=")[0].lower() for key in urlsplit(url).query.split("&")}
    assert "expires" in signed or "x-amz-expires" in signed


def test_image_requests_are_redirected_to_the_bucket(
    endpoint: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    settings = load_settings(None, worker__checkpoint=str(tiny_checkpoint))
    settings = settings_within(settings, str(tmp_path))
    images = ImageSettings(store=f"s3://{BUCKET}/{uuid.uuid4()}", redirect=True)
    app = create_app(settings.model_copy(update={"images": images}), StubEngine())
    app.state.hyimage.images._filesystem.clear_instance_cache()
    task = {
        "taskType": "imageInference",
        "taskUUID": str(uuid.uuid4()),
        "model": "runware:180@1",
        "positivePrompt": "a red fox",
        "ttl": 100,
    }
    with TestClient(app, follow_redirects=False) as client:
        url = client.post("/v1", json=[task]).json()["data"][0]["imageURL"]
        moved, head = client.get(url), client.head(url)
    assert (moved.status_code, moved.headers["access-control-allow-origin"]) == (307, "*")
    assert moved.headers["cache-control"] in ("public, max-age=49", "public, max-age=50")
    assert httpx.get(moved.headers["location"]).content == b"image"
    assert (head.status_code, head.headers["content-length"]) == (200, "5")  # a signed URL is GET's


def test_a_store_that_is_gone_is_an_error_that_clients_understand(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = new_store()
    with pytest.raises(TaskError, match=r"serviceUnavailable.*cannot be reached"):
        asyncio.run(store.save(f"{uuid.uuid4()}.png", b"image"))


def test_an_unknown_protocol_is_refused_with_what_works() -> None:
    with pytest.raises(SettingsError, match=r"images.store.*s3://BUCKET"):
        ImageStore("nonsense://somewhere")
