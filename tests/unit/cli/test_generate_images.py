"""`hyimage generate --image`: input images of an Instruct checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from cli.app import app
from cli.generate import to_request
from cli.generate_options import GenerateOptions
from pipeline.checkpoint_info import read_checkpoint_info
from server.runware.errors import CommandError
from server.settings import load_settings
from tests.conftest import GOLDEN

RUNNER = CliRunner()
INPUTS = GOLDEN / "edit"
ALPHA, GREY = str(INPUTS / "edit_in_alpha.png"), str(INPUTS / "edit_in_grey.png")


def generate(checkpoint: Path, output: Path, *arguments: str) -> Any:
    options = ["-o", str(output), "--checkpoint", str(checkpoint), *arguments]
    return RUNNER.invoke(app, ["generate", "make it night", *options])


def test_input_images_are_edited_and_the_result_is_aligned(
    edit_checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "night.png"
    images = ["--image", ALPHA, "--image", GREY, "--align"]
    numbers = ["--size", "304x208", "--steps", "1", "--guidance", "1", "--seed", "7"]
    result = generate(edit_checkpoint, output, *images, *numbers)
    assert result.exit_code == 0, result.output
    assert "317x207" in result.output
    with Image.open(output) as image:
        assert image.size == (317, 207)


def test_a_checkpoint_that_was_not_trained_to_edit_says_which_was(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    result = generate(tiny_checkpoint, tmp_path / "x.png", "--image", ALPHA)
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    assert "takes no input images" in said
    assert "HunyuanImage-3.0-Instruct" in said


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--image", "nowhere.png"], "nowhere.png"),
        (["--image", str(INPUTS)], "Is a directory"),
        (["--image", str(INPUTS / "manifest.json")], "not readable as an image"),
        (["--image", ALPHA] * 4, "given 4 times; at most 3"),
        (["--align"], "--align is about input images"),
    ],
    ids=["missing", "folder", "no image", "too many", "align alone"],
)
def test_what_cannot_be_used_is_named_before_the_checkpoint_is_loaded(
    edit_checkpoint: Path, tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    result = generate(edit_checkpoint, tmp_path / "x.png", *arguments)
    assert result.exit_code == 2
    assert complaint in " ".join(result.output.split())
    assert "loading" not in result.output
    assert not (tmp_path / "x.png").exists()


def test_images_and_words_that_need_more_positions_than_there_are_are_counted(
    edit_checkpoint: Path, tmp_path: Path
) -> None:
    info = replace(read_checkpoint_info(edit_checkpoint), max_positions=1000)
    options = GenerateOptions(
        prompt="fog " * 100, output=tmp_path / "x.png", size="256x256", images=(Path(GREY),) * 2
    )
    settings = load_settings(None, worker__checkpoint=str(edit_checkpoint))
    with pytest.raises(
        CommandError, match=r"PROMPT.*its image and 2 input images it needs \d+ positions more"
    ):
        to_request(options, settings, info)
    _, request = to_request(replace(options, images=(Path(GREY),)), settings, info)
    assert request.images == (Path(GREY).read_bytes(),)
