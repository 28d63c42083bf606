import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from server.settings import load_settings

RUNNER = CliRunner()
CONFIG = Path(__file__).parents[2] / "golden" / "real_config_distil.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, with a space in its name, that holds the real config.json of six layers."""
    folder = tmp_path_factory.mktemp("real checkpoint")
    fields = json.loads(CONFIG.read_text())
    num_layers = fields["num_hidden_layers"]
    for name, value in fields.items():
        if isinstance(value, list) and len(value) == num_layers:
            fields[name] = value[:6]
    (folder / "config.json").write_text(json.dumps({**fields, "num_hidden_layers": 6}))
    return folder


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--gpus", "1x80GB"], {"device": "cuda", "dtype": "bfloat16"}),
        (["--gpus", "4x27GB", "--quantization", "none"], {"tensor_parallel_size": 4}),
        (["--gpus", "1x30GB", "--vae-dtype", "bfloat16", "--quantization", "none"],
         {"device_memory_gb": 27.6, "vae_dtype": "bfloat16"}),
        (["--gpus", "1x80GB", "--quantization", "int4"], {"dtype": "bfloat16"}),
    ],
    ids=["single", "tensor", "offload", "int4"],
)  # fmt: skip
def test_the_printed_settings_are_settings(
    folder: Path,
    arguments: list[str],
    expected: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = RUNNER.invoke(app, ["plan", "--checkpoint", str(folder), *arguments])
    assert result.exit_code == 0, result.output
    *_, line = result.stdout.splitlines()
    words = shlex.split(line)
    assignments = [word for word in words if word.startswith("HYIMAGE_")]
    for assignment in assignments:
        monkeypatch.setenv(*assignment.split("=", 1))
    worker = load_settings(None).worker.model_dump()
    assert {name: worker[name] for name in expected} == expected
    command = words[len(assignments) :]
    served = f"{folder}-int4" if "int4" in arguments else str(folder)
    assert command == ["hyimage", "serve", "--checkpoint", served]


def test_a_quantized_plan_prints_how_to_quantize(folder: Path) -> None:
    arguments = ["--gpus", "1x80GB", "--quantization", "int4"]
    result = RUNNER.invoke(app, ["plan", "--checkpoint", str(folder), *arguments])
    line = next(line for line in result.stdout.splitlines() if line.startswith("hyimage quantize"))
    words = shlex.split(line)
    assert words[2:] == ["--checkpoint", str(folder), f"{folder}-int4", "--scheme", "int4"]


def test_a_plan_without_a_compiler_has_more_kernels_and_says_so(
    folder: Path, tmp_path: Path
) -> None:
    kernels = {}
    for option in ("--compiled", "--no-compiled"):
        arguments = ["plan", "--checkpoint", str(folder), "--gpus", "1x80GB", option]
        result = RUNNER.invoke(app, [*arguments, "--json", str(tmp_path / "plan.json")])
        assert ("without a compiler" in " ".join(result.stdout.split())) == (option[2] == "n")
        plan = json.loads((tmp_path / "plan.json").read_text())["plans"][0]
        kernels[option] = plan["step"]["num_kernels"]
    assert kernels["--no-compiled"] > 1.5 * kernels["--compiled"]


def test_whole_experts_are_planned_and_set(folder: Path) -> None:
    arguments = ["plan", "--checkpoint", str(folder), "--gpus", "4x27GB", "--expert-parallel"]
    result = RUNNER.invoke(app, [*arguments, "--quantization", "none"])
    assert "HYIMAGE_WORKER__EXPERT_PARALLEL=true" in result.stdout.splitlines()[-1]


def test_input_images_are_planned_and_what_reads_them_is_set(folder: Path, tmp_path: Path) -> None:
    arguments = ["plan", "--checkpoint", str(folder), "--gpus", "1x80GB", "--quantization", "none"]
    file = tmp_path / "plan.json"
    result = RUNNER.invoke(app, [*arguments, "--input-images", "2", "--json", str(file)])
    assert "2 input image(s) of 5126" in " ".join(result.stdout.split())
    assert "HYIMAGE_WORKER__IMAGE_INPUTS=true" in result.stdout.splitlines()[-1]
    plan = json.loads(file.read_text())["plans"][0]
    # 2 x 8 heads x 128 x 2 bytes a token and layer; a distilled checkpoint has one row.
    assert plan["prefix"] == (1024 + 2 * 5126) * 6 * 4096
    assert plan["reading"] > plan["activations"]
    assert RUNNER.invoke(app, [*arguments, "--input-images", "4"]).exit_code == 2


def test_a_config_file_stands_for_its_folder(folder: Path) -> None:
    arguments = ["plan", "--checkpoint", str(folder / "config.json"), "--gpus", "1x80GB"]
    result = RUNNER.invoke(app, arguments)
    assert shlex.split(result.stdout.splitlines()[-1])[-1] == str(folder)


def test_what_does_not_fit_exits_with_1_and_says_what_would_help(folder: Path) -> None:
    result = RUNNER.invoke(app, ["plan", "--checkpoint", str(folder), "--gpus", "1x1GB"])
    assert result.exit_code == 1
    assert "No mode fits. More devices, or larger ones" in result.stdout
    assert "hyimage serve" not in result.stdout
