"""Images in an S3 bucket: a real server process of moto's on loopback."""

import asyncio
import uuid
from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer

from server.delivery.images import ImageStore
from server.runware.errors import TaskError
from server.settings import SettingsError

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
