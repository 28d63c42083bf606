"""Pages behind a key by setting: a Bearer token, or the password that a browser asks for."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from server.app import create_app
from server.settings import Settings
from server.tasks.key_file import add_key
from tests.contract.conftest import FakeEngine, change

PAGES = ["/metrics", "/docs", "/openapi.json"]
ALL = ("metrics", "docs", "ready")


@pytest.fixture
def key(settings: Settings) -> str:
    return add_key(Path(settings.keys.file), "prometheus")


@pytest.fixture
def private(settings: Settings, engine: FakeEngine, key: str) -> Iterator[TestClient]:
    with TestClient(create_app(change(settings, server__private=ALL), engine)) as client:
        yield client


def basic(password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'me:{password}'.encode()).decode()}"}


@pytest.mark.parametrize("path", PAGES)
def test_a_private_page_needs_a_key(private: TestClient, key: str, path: str) -> None:
    for headers in (
        {},
        basic("wrong"),
        {"Authorization": "Basic %"},
        {"Authorization": "Basic /w"},
    ):
        refused = private.get(path, headers=headers)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Basic ")
        assert refused.json()["errors"][0]["code"] in ("missingApiKey", "invalidApiKey")
    for headers in ({"Authorization": f"Bearer {key}"}, basic(key)):
        assert private.get(path, headers=headers).status_code == 200


def test_readiness_has_its_detail_for_keys_alone(private: TestClient, key: str) -> None:
    plain = private.get("/ready")
    assert (plain.status_code, plain.json()) == (200, {"ready": True, "worker": ""})
    assert private.get("/ready", headers=basic(key)).json()["worker"] == "fake"
    assert private.get("/health").status_code == 200


def test_pages_are_open_unless_a_setting_names_them_and_where_there_is_no_key(
    settings: Settings, engine: FakeEngine
) -> None:
    for pages in ((), ALL):  # without any key in both cases
        with TestClient(create_app(change(settings, server__private=pages), engine)) as client:
            assert [client.get(path).status_code for path in PAGES] == [200] * 3
            assert client.get("/ready").json()["worker"] == "fake"
    add_key(Path(settings.keys.file), "one")
    with TestClient(create_app(change(settings, server__private=("docs",)), engine)) as client:
        assert [client.get(path).status_code for path in PAGES] == [200, 401, 401]


def test_the_api_itself_does_not_make_a_browser_ask(private: TestClient) -> None:
    refused = private.get("/v1/tasks/00000000-0000-4000-8000-000000000000/events")
    assert refused.status_code == 401
    assert "Basic" not in refused.headers.get("www-authenticate", "")
