import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import TokenizerError
from model.template import Prompt, Template
from model.tokenizer import Tokenizer

CHECKPOINT = Path(__file__).parents[1] / "golden" / "model"
TOKENIZER = Tokenizer.from_folder(CHECKPOINT)
CONTROL = [
    token["content"]
    for token in json.loads((CHECKPOINT / "tokenizer.json").read_text())["added_tokens"]
]
CONTROL_IDS = {TOKENIZER.control_id(token) for token in CONTROL}


@given(st.lists(st.one_of(st.sampled_from(CONTROL), st.text(max_size=8)), max_size=6).map("".join))
def test_control_strings_in_a_prompt_stay_text(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert CONTROL_IDS.isdisjoint(ids)


@given(
    st.lists(st.one_of(st.sampled_from(CONTROL), st.sampled_from("ab <>")), max_size=6).map("".join)
)
def test_encoded_text_decodes_to_itself(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.text(min_size=1, max_size=30), st.text(max_size=30))
def test_only_the_users_tokens_become_cfg(prompt: str, system: str) -> None:
    template = Template(TOKENIZER, "instruct", 256)
    sections = template.image_head(Prompt(text=prompt, system_prompt=system), 16)
    masked = template.unconditional(sections)
    cfg = TOKENIZER.control_id("<cfg>")
    for before, after in zip(sections, masked, strict=True):
        assert len(before.ids) == len(after.ids)
        assert after.ids == ((cfg,) * len(before.ids) if before.is_masked else before.ids)
    assert sum(len(s.ids) for s in sections if s.is_masked) == len(TOKENIZER.encode(prompt))


def test_no_prompt_is_a_single_dropped_token() -> None:
    template = Template(TOKENIZER, "pretrain", 256)
    sections = template.image_head(Prompt(text=""), 16)
    assert sections == template.unconditional(sections)


def test_a_missing_control_token_is_named() -> None:
    with pytest.raises(TokenizerError, match="<no_such_token>"):
        TOKENIZER.control_id("<no_such_token>")


def test_a_damaged_tokenizer_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    shutil.copy(CHECKPOINT / "tokenizer_config.json", tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(TokenizerError, match=str(tmp_path)):
        Tokenizer.from_folder(tmp_path)
