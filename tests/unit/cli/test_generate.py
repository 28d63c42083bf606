"""`hyimage generate` by the server's own checks and defaults."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from cache.plan import NO_REUSE
from cli.app import app
from cli.generate import to_request
from cli.generate_options import GenerateOptions
from pipeline.checkpoint_info import CheckpointInfo, read_checkpoint_info
from pipeline.guidance_plan import GuidancePlan
from server.runware.cache_options import build_cache_plan
from server.runware.errors import CommandError
from server.runware.image_request import to_image_request
from server.runware.validation import parse_image_inference
from server.settings import Settings, load_settings

RUNNER = CliRunner()
OPTIONS = GenerateOptions(prompt="a red fox", output=Path("fox.png"))
TINY = Path(__file__).parents[3] / "checkpoints" / "tiny"


@pytest.fixture(scope="module")
def info() -> CheckpointInfo:
    return read_checkpoint_info(TINY)


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings(None)


@pytest.mark.parametrize(("ending", "name"), [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP")])
def test_generate_writes_the_format_of_the_files_ending(
    tiny_checkpoint: Path, tmp_path: Path, ending: str, name: str
) -> None:
    output = tmp_path / f"fox.{ending}"
    arguments = ["--size", "320x192", "--steps", "1", "--checkpoint", str(tiny_checkpoint)]
    result = RUNNER.invoke(app, ["generate", "a red fox", "-o", str(output), *arguments])
    assert result.exit_code == 0, result.output
    with Image.open(output) as image:
        assert (image.size, image.format) == ((320, 192), name)


def test_diagnostics_are_json_before_the_line_that_names_the_file(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "fox.png"
    arguments = ["--steps", "2", "--seed", "7", "--tea-cache", "0.5", "--diagnostics"]
    where = ["-o", str(output), "--size", "256x256", "--checkpoint", str(tiny_checkpoint)]
    result = RUNNER.invoke(app, ["generate", "a red fox", *where, *arguments])
    assert result.exit_code == 0, result.output
    text, _, line = result.stdout.rstrip("\n").rpartition("\n")
    assert json.loads(text)["cache"] == "teaCache"
    assert line == f"{output} (256x256, seed 7)"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["-o", "fox.gif"], ".gif"),
        (["-o", "no/such/folder/fox.png"], "no/such/folder"),
        (["--size", "big"], "WIDTHxHEIGHT"),
        (["--size", "512x512"], "--size"),
        (["--checkpoint", "nowhere"], "nowhere/config.json"),
        (["--guidance", "1.05"], "--guidance"),
        (["--negative", "x"], "--negative"),
        (["--rewrite", "think"], "--rewrite"),
        (["--tea-cache", "0.333"], "--tea-cache"),
        (["--acceleration", "extreme"], "--acceleration"),
        (["--system-prompt", "x"], "--system-prompt"),
        (["--steps", "101"], "--steps"),
        (["--guidance-options", "sometimes"], "one of: 'plain', 'interval'"),
        (["--guidance-options", '{"interval": [1, 0]}'], "'interval' of --guidance-options"),
        (["--guidance-options", '{"interval'], "is not JSON"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_generate_refuses_in_a_sentence_that_names_the_option(
    tiny_checkpoint: Path, tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    base = ["-o", str(tmp_path / "x.png"), "--checkpoint", str(tiny_checkpoint)]
    result = RUNNER.invoke(app, ["generate", "a red fox", *base, *arguments])
    assert result.exit_code == 2
    assert complaint in result.output.replace("\n", "")
    assert "Traceback" not in result.output


def test_a_request_is_the_one_that_the_server_makes_of_the_same_values(
    info: CheckpointInfo, settings: Settings
) -> None:
    options = replace(
        OPTIONS, negative="a dog", size="1280x768", steps=30, guidance=4.5, seed=7,
        scheduler="DPM++ 2M", acceleration="high", fb_cache=0.2, guidance_options="interval",
    )  # fmt: skip
    task = parse_image_inference({
        "taskType": "imageInference", "taskUUID": "0b1a5d0c-8d1e-4b3a-9d64-2f3a4b5c6d7e",
        "model": "runware:180@1", "positivePrompt": "a red fox", "negativePrompt": "a dog",
        "width": 1280, "height": 768, "steps": 30, "CFGScale": 4.5, "seed": 7,
        "scheduler": "DPM++ 2M", "acceleration": "high",
        "acceleratorOptions": {"fbCache": True, "fbCacheThreshold": 0.2},
        "hunyuan": {"guidance": {"interval": "calibrated"}},
    })  # fmt: skip
    _, request = to_request(options, settings, info)
    assert request == to_image_request(task, (1280, 768), (7,), settings.cache)


def test_what_is_left_out_is_the_servers_default(info: CheckpointInfo, settings: Settings) -> None:
    parameters, request = to_request(OPTIONS, settings, info)
    assert (request.num_steps, request.guidance, request.scheduler) == (20, 7.0, "Default")
    assert request.width_px is None  # api.default_size is auto: the model chooses
    plan, warnings = build_cache_plan(parameters, settings.cache)
    assert (request.cache, warnings) == (plan, ())
    api = settings.api.model_copy(update={"default_size": "1280x768"})
    _, request = to_request(OPTIONS, settings.model_copy(update={"api": api}), info)
    assert (request.width_px, request.height_px) == (1280, 768)
    _, request = to_request(
        replace(OPTIONS, size="auto"), settings.model_copy(update={"api": api}), info
    )
    assert request.width_px is None


def test_the_setting_of_the_guidance_holds_unless_an_option_says_otherwise(
    info: CheckpointInfo, settings: Settings
) -> None:
    api = settings.api.model_copy(update={"default_guidance": "interval"})
    settings = settings.model_copy(update={"api": api})
    _, request = to_request(OPTIONS, settings, info)
    assert request.guidance_plan == GuidancePlan(interval="calibrated")
    own = replace(OPTIONS, guidance_options='{"rescale": 0.5}')
    assert to_request(own, settings, info)[1].guidance_plan == GuidancePlan(rescale=0.5)


def test_guidance_of_1_turns_it_off(info: CheckpointInfo, settings: Settings) -> None:
    _, request = to_request(replace(OPTIONS, guidance=1.0), settings, info)
    assert request.guidance == 1.0


def test_a_distilled_checkpoint_generates_its_own_steps_and_takes_no_negative_prompt(
    info: CheckpointInfo, settings: Settings
) -> None:
    distilled = replace(info, is_distilled=True, default_steps=8)
    _, request = to_request(OPTIONS, settings, distilled)
    assert request.num_steps == 8
    _, request = to_request(replace(OPTIONS, steps=20), settings, distilled)
    assert request.num_steps == 20
    with pytest.raises(CommandError, match=r"--negative.*distilled"):
        to_request(replace(OPTIONS, negative="a dog"), settings, distilled)


def test_a_prompt_that_leaves_no_room_for_its_image_is_refused(
    info: CheckpointInfo, settings: Settings
) -> None:
    short = replace(info, max_positions=1300)
    with pytest.raises(CommandError, match=r"PROMPT.*shorten it"):
        to_request(replace(OPTIONS, prompt="fox " * 700), settings, short)


def test_no_acceleration_reuses_nothing(info: CheckpointInfo, settings: Settings) -> None:
    _, request = to_request(replace(OPTIONS, steps=10, acceleration="none"), settings, info)
    assert replace(request.cache, start=0, end=NO_REUSE.end) == NO_REUSE
