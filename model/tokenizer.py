"""Tokenizer of one checkpoint; control tokens come from the template, never from a user's text."""

import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer
from transformers import PreTrainedTokenizerFast

from model.config_file import read_json
from model.errors import TokenizerError


class Tokenizer:
    """The tokenizer of one checkpoint.

    Two encoders share one vocabulary: `encode` has no added tokens, so that `<img>` in a user's
    prompt stays five characters of text; `encode_control` parses control strings as the
    official reference does, and serves recordings only.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, source: str) -> None:
        self._source = source
        self._full: FastTokenizer = tokenizer.backend_tokenizer
        description = json.loads(self._full.to_str())
        self._control_ids = {token["content"]: token["id"] for token in description["added_tokens"]}
        self._plain = FastTokenizer.from_str(json.dumps({**description, "added_tokens": []}))

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Load the tokenizer files of the checkpoint in `folder`.

        Raises:
            TokenizerError: a file is missing or unreadable.
        """
        description = read_json(folder / "tokenizer.json", TokenizerError)
        if not (isinstance(description.get("model"), dict) and description.get("added_tokens")):
            raise TokenizerError(f"{folder / 'tokenizer.json'} lacks a vocabulary or added tokens")
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as e:
            raise TokenizerError(f"the tokenizer in {folder} cannot be read: {e}") from None
        return cls(tokenizer, str(folder))

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; control strings in it stay plain text."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        # A vocabulary that spells a control string as one ordinary token would let a prompt steer
        # the layout; no known checkpoint has one.
        if not self._control_ids.keys().isdisjoint(map(self._plain.id_to_token, ids)):
            raise TokenizerError(f"the vocabulary of {self._source} turns text into control tokens")
        return ids

    def encode_control(self, text: str) -> list[int]:
        """Return the ids of `text` with control strings parsed, as the reference does."""
        ids: list[int] = self._full.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, control tokens spelled out."""
        text: str = self._full.decode(list(ids), skip_special_tokens=False)
        return text

    @property
    def num_ratios(self) -> int:
        """Return how many tokens `<img_ratio_0>`, `<img_ratio_1>`... there are."""
        return next(i for i in count() if f"<img_ratio_{i}>" not in self._control_ids)

    def control_id(self, token: str) -> int:
        """Return the id of a control token, looked up by its string.

        Raises:
            TokenizerError: this checkpoint's tokenizer has no such token.
        """
        try:
            return int(self._control_ids[token])
        except KeyError:
            raise TokenizerError(
                f"the tokenizer in {self._source} has no token {token}; "
                "its added tokens do not fit this model"
            ) from None
