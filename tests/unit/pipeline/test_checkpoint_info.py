"""What admission reads of a checkpoint: whether it takes input images, and what they need."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.checkpoint_info import CheckpointInfo, read_checkpoint_info
from tests.conftest import GOLDEN_CHECKPOINT

TINY = Path(__file__).parents[3] / "checkpoints" / "tiny"


@pytest.fixture
def instruct(edit_checkpoint: Path) -> CheckpointInfo:
    return read_checkpoint_info(edit_checkpoint)


def test_an_instruct_checkpoint_takes_three_images_and_others_none(
    instruct: CheckpointInfo,
) -> None:
    assert instruct.max_input_images == 3
    for folder in (TINY, GOLDEN_CHECKPOINT):
        assert read_checkpoint_info(folder).max_input_images == 0


def test_an_instruct_checkpoint_without_the_token_between_an_images_parts_takes_none(
    edit_checkpoint: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        shutil.copy(edit_checkpoint / name, tmp_path)
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("<joint_img_sep>", "<another>"))
    assert read_checkpoint_info(tmp_path).max_input_images == 0


def test_the_tokens_of_an_image_are_those_of_its_own_shape(instruct: CheckpointInfo) -> None:
    # Base 256, a token for 16 pixels, 64 slots of the tower: 4 + 16 x 16 + 1 + 64 + 1.
    assert instruct.input_tokens(300, 300) == 326
    assert instruct.input_tokens(100, 180) == instruct.input_tokens(1000, 1800) < 326


def test_input_images_leave_less_room_for_words(instruct: CheckpointInfo) -> None:
    short = replace(instruct, max_positions=1000)
    size, text = short.sizes[8], "fog " * 600  # 256 tokens are the image's
    excess = short.excess_tokens(text, size)
    assert excess > 0
    assert short.excess_tokens(text, size, [(300, 300), (50, 50)]) == excess + 2 * 326
