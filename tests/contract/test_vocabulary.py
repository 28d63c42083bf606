"""What clients see of a checkpoint that draws only some things."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from pipeline.vocabulary import FILE_NAME
from server.app import create_app
from server.settings import Settings
from tests.contract.conftest import FakeEngine, make_task

WORDS = {"Things": {"cat": ["kitten"], "dog": []}}


@pytest.fixture
def knowing(settings: Settings, engine: FakeEngine) -> Iterator[TestClient]:
    """A server whose checkpoint draws cats and dogs."""
    groups = [{"name": name, "has_subjects": True, "words": words} for name, words in WORDS.items()]
    values = {"about": "Draws two things.", "groups": groups, "examples": ["a cat"]}
    (Path(settings.worker.checkpoint) / FILE_NAME).write_text(json.dumps(values))
    with TestClient(create_app(settings, engine)) as client:
        yield client


def warnings_of(client: TestClient, **changes: Any) -> list[str]:
    answer = client.post("/v1?diagnostics=1", json=[make_task(**changes)]).json()
    warnings: list[str] = answer["data"][0]["diagnostics"]["warnings"]
    return warnings


def test_readiness_the_model_search_and_the_page_list_its_words(knowing: TestClient) -> None:
    words = {"Things": ["cat", "dog"]}
    assert knowing.get("/ready").json()["vocabulary"] == words
    search = [{"taskType": "modelSearch", "taskUUID": "9cf1a53b-1bb6-4a21-9d2c-6a3e5c9f4d11"}]
    (model,) = knowing.post("/v1", json=search).json()["data"][0]["results"]
    assert (model["vocabulary"], model["comment"]) == (words, "Draws two things.")
    config = knowing.get("/page/config.json").json()
    assert [group["words"] for group in config["vocabulary"]] == list(WORDS.values())
    assert config["examples"] == ["a cat"]


def test_a_prompt_that_names_nothing_it_draws_has_a_warning(knowing: TestClient) -> None:
    (warning,) = warnings_of(knowing, positivePrompt="a red fox")
    assert "cat, dog" in warning
    assert warnings_of(knowing, positivePrompt="A kitten.") == []
    assert warnings_of(knowing, positivePrompt="__BLANK__") == []


def test_a_checkpoint_without_a_list_of_words_draws_anything(client: TestClient) -> None:
    assert "vocabulary" not in client.get("/ready").json()
    assert warnings_of(client, positivePrompt="a red fox") == []
