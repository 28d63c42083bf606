"""What browsers, caches and proxies need: validators and ranges, other origins, /docs."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from server.api.images import byte_range
from server.app import create_app
from server.settings import Settings, SettingsError, load_settings
from tests.contract.conftest import FakeEngine, change, make_task

PAGE = "https://page.example"
CONTENT = b"image 7"


@pytest.fixture
def url(client: TestClient) -> str:
    """Return the URL of an image that is kept for 100 seconds."""
    (item,) = client.post("/v1", json=[make_task(seed=7, ttl=100)]).json()["data"]
    return str(item["imageURL"])


@pytest.fixture
def open_client(settings: Settings, engine: FakeEngine) -> Any:
    """A server whose API a page of another origin may call."""
    with TestClient(create_app(change(settings, server__cors_origins=(PAGE,)), engine)) as client:
        yield client


def preflight(client: TestClient, path: str, origin: str = PAGE, method: str = "POST") -> Any:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    return client.options(path, headers=headers)


def test_an_image_may_be_cached_until_it_expires(client: TestClient, url: str) -> None:
    answer = client.get(url)
    assert (answer.status_code, answer.content) == (200, CONTENT)
    found = re.fullmatch(r"public, max-age=(\d+), immutable", answer.headers["cache-control"])
    assert found is not None
    assert 90 <= int(found[1]) <= 100
    assert answer.headers["x-content-type-options"] == "nosniff"
    for tag in (answer.headers["etag"], f'"x", W/{answer.headers["etag"]}', "*"):
        again = client.get(url, headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == answer.headers["etag"]
    assert client.get(url, headers={"If-None-Match": '"other"'}).status_code == 200


def test_the_head_of_an_image_is_its_headers(client: TestClient, url: str) -> None:
    whole, head = client.get(url), client.head(url)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "content-type", "etag", "accept-ranges"):
        assert head.headers[name] == whole.headers[name]
    assert client.head(url.replace(".jpg", ".png")).status_code == 404
    assert set(client.post(url).headers["allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.parametrize(
    ("wanted", "content", "place"),
    [
        ("bytes=0-2", b"ima", "bytes 0-2/7"),
        ("bytes=4-", b"e 7", "bytes 4-6/7"),
        ("bytes=5-999", b" 7", "bytes 5-6/7"),
        ("bytes=-2", b" 7", "bytes 5-6/7"),
        ("bytes=-99", CONTENT, "bytes 0-6/7"),
    ],
)
def test_a_range_of_an_image_is_returned(
    client: TestClient, url: str, wanted: str, content: bytes, place: str
) -> None:
    answer = client.get(url, headers={"Range": wanted})
    assert (answer.status_code, answer.content) == (206, content)
    assert (answer.headers["content-range"], answer.headers["content-type"]) == (
        place,
        "image/jpeg",
    )


@pytest.mark.parametrize("wanted", ["bytes=7-", "bytes=99-100", "bytes=-0"])
def test_a_range_outside_an_image_is_refused(client: TestClient, url: str, wanted: str) -> None:
    answer = client.get(url, headers={"Range": wanted})
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */7")


@pytest.mark.parametrize(
    "headers",
    [
        {"Range": "bytes=0-1,3-4"}, {"Range": "bytes=3-1"}, {"Range": "bytes=-"},
        {"Range": "lines=0-1"}, {"Range": "bytes=" + "9" * 5000 + "-"}, {"Range": "bytes=a-b"},
        {"Range": "bytes=0-1", "If-Range": '"other"'},
    ],
)  # fmt: skip
def test_a_range_that_is_not_understood_or_is_of_another_image_gives_the_whole(
    client: TestClient, url: str, headers: dict[str, str]
) -> None:
    answer = client.get(url, headers=headers)
    assert (answer.status_code, answer.content) == (200, CONTENT)
    etag = answer.headers["etag"]
    same = client.get(url, headers={"Range": "bytes=0-1", "If-Range": etag})
    assert (same.status_code, same.content) == (206, b"im")


def test_a_range_is_empty_exactly_if_it_lies_outside() -> None:
    assert byte_range("bytes=0-", 0) == (0, 0)
    assert byte_range("bytes=2-3", 4) == (2, 4)


def test_an_expired_image_is_gone_before_it_is_swept(
    client: TestClient, settings: Settings, url: str
) -> None:
    database = settings.tasks.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE images SET expires_at = 1")
    assert client.get(url).status_code == 404


def test_an_image_is_served_without_its_database_but_not_cached(
    client: TestClient, settings: Settings, url: str
) -> None:
    database = settings.tasks.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("ALTER TABLE images RENAME TO hidden")
    answer = client.get(url)
    assert (answer.content, answer.headers["cache-control"]) == (CONTENT, "no-cache")
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("ALTER TABLE hidden RENAME TO images")


def test_every_page_may_read_images(client: TestClient, url: str) -> None:
    for headers in ({}, {"Origin": "https://any.example"}):
        assert client.get(url, headers=headers).headers["access-control-allow-origin"] == "*"
    path = url.removeprefix("http://example.test:8000")
    answer = preflight(client, path, "https://any.example", "GET")
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")


def test_no_page_may_call_the_api_by_default(client: TestClient) -> None:
    answer = client.post("/v1", json=[make_task()], headers={"Origin": PAGE})
    assert "access-control-allow-origin" not in answer.headers
    assert preflight(client, "/v1").status_code == 405


def test_the_pages_of_a_setting_may_call_the_api(open_client: TestClient) -> None:
    for path in ("/v1", "/v1/images/generations", "/v1/models"):
        answer = preflight(open_client, path)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
        assert "authorization" in answer.headers["access-control-allow-headers"]
        assert preflight(open_client, path, "https://other.example").status_code == 400
    for task in (make_task(), make_task(steps=0)):  # pages read errors, too
        answer = open_client.post("/v1", json=[task], headers={"Origin": PAGE})
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()
    other = open_client.post("/v1", json=[make_task()], headers={"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers
    assert "access-control-allow-credentials" not in answer.headers


def test_every_page_may_call_the_api_if_the_setting_says_so(
    settings: Settings, engine: FakeEngine
) -> None:
    with TestClient(create_app(change(settings, server__cors_origins=("*",)), engine)) as client:
        answer = client.post("/v1", json=[make_task()], headers={"Origin": PAGE})
    assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    "origin", ["page.example", "https://page.example/path", "https://*.example"]
)
def test_an_origin_that_no_browser_sends_is_refused(tmp_path: Path, origin: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f'[server]\ncors_origins = ["{origin}"]\n')
    with pytest.raises(SettingsError, match="cors_origins"):
        load_settings(file)


def test_redirects_need_a_store_that_signs(settings: Settings, engine: FakeEngine) -> None:
    with pytest.raises(SettingsError, match=r"images\.redirect.*s3://BUCKET"):
        create_app(change(settings, images__redirect=True), engine)


def test_the_page_of_the_api_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert "http" not in page.text.lower().replace("httpbearer", "")
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(files) == 3
    kinds = [client.get(f"/{file}").headers["content-type"].partition(";")[0] for file in files]
    assert sorted(kinds) == ["image/png", "text/css", "text/javascript"]
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert client.get("/openapi.json").json()["openapi"].startswith("3.1")
    assert client.get("/redoc").status_code == 404
    assert client.get("/docs/files/none.js").json()["error"]["code"] == "unknownPath"
