"""The page's routes: its files, their headers, and what it needs of the server."""

import re
from importlib import resources
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from schedulers.catalog import ACCEPTED
from server.app import create_app
from server.settings import Settings
from server.tasks.key_file import add_key
from tests.contract.conftest import FakeEngine

FILES = sorted(
    item.name for item in resources.files("server.page").iterdir() if item.name[:2] != "__"
)
TEXTS = [name for name in FILES if name.endswith((".html", ".js", ".css", ".svg"))]


def read(name: str) -> str:
    return resources.files("server.page").joinpath(name).read_text("utf-8")


@pytest.mark.parametrize("path", ["/", *(f"/page/{name}" for name in FILES), "/page/config.json"])
def test_everything_of_the_page_has_a_policy_that_lets_nothing_in_from_outside(
    client: TestClient, path: str
) -> None:
    response = client.get(path)
    assert response.status_code == 200
    policy = dict(
        part.split(" ", 1) for part in response.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


def test_a_file_that_has_not_changed_is_not_sent_again(client: TestClient) -> None:
    etag = client.get("/page/main.js").headers["etag"]
    again = client.get("/page/main.js", headers={"If-None-Match": etag})
    assert (again.status_code, again.content) == (304, b"")
    other = client.get("/page/main.js", headers={"If-None-Match": '"another"'})
    assert other.status_code == 200


@pytest.mark.parametrize(
    "name", ["nothing.js", "__init__.py", "..%2fapi%2fpage.py", "index.html.map"]
)
def test_only_files_of_the_page_are_served(client: TestClient, name: str) -> None:
    assert client.get(f"/page/{name}").status_code == 404


@pytest.mark.parametrize("name", TEXTS)
def test_no_file_of_the_page_loads_anything_from_another_host(name: str) -> None:
    hosts = set(re.findall(r"(?:https?:)?//([\w-]+(?:\.[\w-]+)+)", read(name)))
    assert hosts <= {"www.w3.org"}, "names of XML vocabularies are the only addresses"


def test_the_html_holds_no_script_and_no_style() -> None:
    html = read("index.html")
    assert re.findall(r"<script(?![^>]*\bsrc=)", html) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=", html) == []


def test_every_file_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"page/([\w.]+)", "".join(map(read, TEXTS)))) - {"config.json"}
    imported = set(re.findall(r'from "\./([\w.]+)"', "".join(map(read, TEXTS))))
    assert named | imported <= set(FILES)
    assert set(FILES) - named - imported - {"index.html"} == set(), "files that nothing names"


def test_the_config_has_what_the_form_offers_and_no_key_is_needed_for_it(
    settings: Settings, engine: FakeEngine
) -> None:
    key = add_key(Path(settings.keys.file), "somebody")
    with TestClient(create_app(settings, engine)) as client:
        answer = client.get("/page/config.json")
    config = answer.json()
    assert config["needsKey"] is True
    assert key not in answer.text
    assert [1024, 1024] in config["sizes"]
    assert [scheduler["name"] for scheduler in config["schedulers"]] == list(ACCEPTED)
    assert config["bounds"]["steps"] == {"type": "integer", "min": 1, "max": 100}
    assert config["bounds"]["CFGScale"]["min"] == 1.1
    assert config["vocabulary"] is None
    assert len(config["examples"]) >= 3
