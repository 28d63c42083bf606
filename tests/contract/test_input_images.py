"""Images in: where they are taken, in which forms, and what becomes of them."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from server.app import create_app
from server.settings import Settings
from tests.contract.conftest import FakeEngine, change
from tests.contract.test_words import change_checkpoint


@pytest.fixture
def editing(settings: Settings) -> Settings:
    """An Instruct checkpoint whose worker reads images."""
    change_checkpoint(settings, "generation_config.json", sequence_template="instruct")
    return change(settings, worker__image_inputs=True)


@pytest.fixture
def editor(editing: Settings, engine: FakeEngine) -> Iterator[TestClient]:
    with TestClient(create_app(editing, engine), base_url="http://example.test:8000") as client:
        yield client


def facts(client: TestClient) -> tuple[Any, Any, Any]:
    search = {"taskType": "modelSearch"}
    (model,) = client.post("/v1", json=[search]).json()["data"][0]["results"]
    pages = (client.get("/ready"), client.get("/page/config.json"))
    return (model["maxInputImages"], *(page.json()["maxInputImages"] for page in pages))


def test_readiness_the_model_search_and_the_page_say_how_many_images_are_taken(
    editor: TestClient,
) -> None:
    assert facts(editor) == (3, 3, 3)


@pytest.mark.parametrize("template", ["pretrain", "instruct"])
def test_no_images_are_taken_without_an_instruct_checkpoint_and_the_setting(
    settings: Settings, engine: FakeEngine, template: str
) -> None:
    change_checkpoint(settings, "generation_config.json", sequence_template=template)
    has_setting = template == "pretrain"
    with TestClient(create_app(change(settings, worker__image_inputs=has_setting), engine)) as one:
        assert facts(one) == (0, 0, 0)
