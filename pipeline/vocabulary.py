"""Vocabulary of a checkpoint that draws only some things: vocabulary.json in its folder. No torch.

A checkpoint without the file, as the official ones are, is taken to draw anything.
"""

import re
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.config_file import read_json
from model.errors import ConfigError

FILE_NAME = "vocabulary.json"
MAX_SHOWN = 6  # words that a warning suggests

_STRICT = ConfigDict(frozen=True, extra="forbid")


class WordGroup(BaseModel):
    """Words of one kind; `words` maps each to its other spellings.

    A prompt is understood only if it has a word of a group with subjects: a colour alone names
    nothing to draw.
    """

    model_config = _STRICT
    name: str
    note: str = ""
    has_subjects: bool
    words: dict[str, tuple[str, ...]] = Field(min_length=1)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The expression that finds a word of the group in a prompt, in any spelling."""
        spellings = [s for word, others in self.words.items() for s in (word, *others)]
        longest_first = sorted(spellings, key=len, reverse=True)
        return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?:e?s)?(?!\w)")


class Vocabulary(BaseModel):
    """The words that a checkpoint draws, and prompts that show what it can."""

    model_config = _STRICT
    about: str
    groups: tuple[WordGroup, ...] = Field(min_length=1)
    examples: tuple[str, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _examples_are_known(self) -> Self:
        unknown = [example for example in self.examples if self.warning(example)]
        if unknown:
            raise ValueError(f"the example {unknown[0]!r} has no word of a group with subjects")
        return self

    def words(self) -> dict[str, list[str]]:
        """Return the words of each group by its name, without other spellings."""
        return {group.name: list(group.words) for group in self.groups}

    def warning(self, prompt: str) -> str | None:
        """Return why a prompt cannot come out as it says, or None if it has a known subject.

        An empty prompt names nothing, and has none.
        """
        subjects = [group for group in self.groups if group.has_subjects]
        text = " ".join(prompt.lower().split())
        if not text or any(group.pattern.search(text) for group in subjects):
            return None
        shown = list(subjects[0].words)[:MAX_SHOWN]
        return (
            "The prompt names nothing that this checkpoint draws, so the image will show something "
            f"else. It draws {', '.join(shown)} and more: /ready and modelSearch list its "
            "vocabulary."
        )


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Return the vocabulary of the checkpoint in `folder`, None if it brings none.

    Raises:
        ConfigError: the file is there and not usable.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        return Vocabulary.model_validate(read_json(path, ConfigError))
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{path}: {where or 'the whole'}: {first['msg']} (got {str(first['input'])[:80]!r}); "
            "mend it, or delete the file if the checkpoint draws anything"
        ) from None
