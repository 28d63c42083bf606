"""Command lines that are wrong: refused in a sentence, and before torch is imported."""

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from cli.app import app
from cli.options import Dtype, Quantization, Scheme
from model.quantization.scheme import SCHEMES
from pipeline.settings import PipelineSettings
from server.settings import SettingsError

RUNNER = CliRunner()
ROOT = Path(__file__).parents[3]
CONFIG = str(ROOT / "tests" / "golden" / "real_config_distil.json")
TINY = str(ROOT / "checkpoints" / "tiny")
GOLDEN = ["--checkpoint", str(ROOT / "tests" / "golden" / "model"), str(ROOT / "tests" / "golden")]

_RUN = """
import sys
from cli.app import app
try:
    app(sys.argv[1:])
except SystemExit as e:
    print("exit", e.code, "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["plan", "--checkpoint", CONFIG, "--gpus", "nonsense"], 2),
        (["plan", "--checkpoint", "nowhere"], 2),
        (["plan", "--checkpoint", CONFIG, "--quantization", "int3"], 2),
        (["quantize", "--checkpoint", "x", "y", "--scheme", "int5"], 2),
        (["generate", "a red fox", "-o", "x.tiff"], 2),
        (["generate", "a red fox", "--scheduler", "Oiler"], 2),
        (["generate", "a red fox", "--checkpoint", TINY, "--size", "8x8"], 2),
        (["generate", "a red fox", "--checkpoint", "nowhere"], 2),
        (["verify", *GOLDEN, "--mode", "cfg3"], 2),
        (["bench", "quality", "--csv", "no/such/folder/rows.csv"], 2),
        (["bench", "step", "--json", "no/such/folder/step.json"], 2),
        (["bench", "loading", "--config", "no.toml"], 2),
        (["bench", "load", "http://127.0.0.1:9"], 2),
        (["bench", "compare", "no.json", "no.json"], 2),
        (["status", "http://127.0.0.1:9"], 2),
        *(
            ([*command, "--checkpoint", "nowhere"], 2)
            for command in (
                ["verify", "x"], ["calibrate"], ["record", "x"],
                ["quantize", "x", "--scheme", "int8"],
                ["bench", "loading"], ["bench", "quality"], ["bench", "quantization"],
                ["bench", "text"], ["bench", "adherence"],
            )
        ),
        (["--help"], 0),
        (["--version"], 0),
    ],
    ids=lambda value: " ".join(value[:3])[:40] if isinstance(value, list) else None,
)  # fmt: skip
def test_arguments_are_checked_before_torch_is_imported(arguments: list[str], code: int) -> None:
    process = subprocess.run(
        [sys.executable, "-c", _RUN, *arguments],
        capture_output=True, text=True, timeout=60, cwd=ROOT, check=True,
    )  # fmt: skip
    assert process.stdout.splitlines()[-1] == f"exit {code} False", process.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "a red fox", "--checkpoint"],
        ["plan", "--checkpoint"],
        ["bench", "text", "--checkpoint"],
        ["keys", "list", "--config"],
    ],
)
def test_brackets_in_a_path_survive_in_the_error(arguments: list[str]) -> None:
    result = RUNNER.invoke(app, [*arguments, "/no/[red]such[/red]/[x]"])
    assert result.exit_code == 2
    assert "error" in result.output
    assert "/no/[red]such[/red]/[x]" in result.output


def test_a_scheduler_that_is_not_known_is_answered_with_the_nearest() -> None:
    result = RUNNER.invoke(app, ["generate", "a fox", "--scheduler", "euler karas"])
    assert result.exit_code == 2
    assert "'Euler Karras'" in " ".join(result.output.split())


@pytest.mark.parametrize(
    "command", [["plan"], ["verify", "x"], ["quantize", "x"], ["calibrate"], ["record", "x"]]
)
def test_a_checkpoint_that_is_missing_is_named(command: list[str]) -> None:
    result = RUNNER.invoke(app, command)
    assert result.exit_code == 2
    assert "Missing option '--checkpoint'" in result.output


def test_an_error_with_a_code_is_one_line_and_any_other_is_a_traceback() -> None:
    from cli.options import reported_errors

    with pytest.raises(ValueError, match="a bug"), reported_errors():
        raise ValueError("a bug")
    with pytest.raises(Exception) as caught, reported_errors():  # noqa: PT011 -- typer's Exit
        raise SettingsError("x [y] is wrong")
    assert getattr(caught.value, "exit_code", None) == 2


def test_the_choices_are_those_of_the_libraries() -> None:
    def allowed(name: str) -> tuple[Any, ...]:
        return get_args(PipelineSettings.model_fields[name].annotation)

    assert set(get_args(Scheme)) == set(SCHEMES)
    assert set(get_args(Quantization)) == {"auto", *allowed("quantization")}
    assert {"auto", *get_args(Dtype)} == set(allowed("dtype")) == set(allowed("vae_dtype"))
