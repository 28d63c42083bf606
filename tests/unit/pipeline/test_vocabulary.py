import json
from pathlib import Path
from typing import Any

import pytest

from model.errors import ConfigError
from pipeline.vocabulary import FILE_NAME, Vocabulary, read_vocabulary
from training.vocabulary import build_vocabulary

TINY = Path("checkpoints/tiny")
VALUES: dict[str, Any] = {
    "about": "Draws two things.",
    "groups": [
        {"name": "Things", "has_subjects": True, "words": {"box": ["crate"], "tea pot": []}},
        {"name": "Colours", "has_subjects": False, "words": {"red": []}},
    ],
    "examples": ["a red box"],
}


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary.model_validate(VALUES)


@pytest.mark.parametrize(
    "prompt",
    ["a box", "Two BOXES", "an old crate, red", "a tea\n  pot", "", "   "],
)
def test_a_prompt_with_a_known_subject_or_without_words_has_no_warning(
    vocabulary: Vocabulary, prompt: str
) -> None:
    assert vocabulary.warning(prompt) is None


@pytest.mark.parametrize("prompt", ["a red fox", "boxing", "a teapot", "crated", "inbox"])
def test_a_prompt_of_other_words_or_of_a_colour_alone_has_one(
    vocabulary: Vocabulary, prompt: str
) -> None:
    warning = vocabulary.warning(prompt)
    assert warning is not None
    assert "box, tea pot" in warning


def test_a_folder_without_the_file_draws_anything(tmp_path: Path) -> None:
    assert read_vocabulary(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"groups": []}, "groups"),
        ({"examples": ["a red fox"]}, "a red fox"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_file_that_is_not_usable_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    (tmp_path / FILE_NAME).write_text(json.dumps({**VALUES, **change}))
    with pytest.raises(ConfigError, match=named) as caught:
        read_vocabulary(tmp_path)
    assert FILE_NAME in str(caught.value)


def test_the_tiny_checkpoint_has_the_words_of_its_captions() -> None:
    assert read_vocabulary(TINY) == build_vocabulary()
