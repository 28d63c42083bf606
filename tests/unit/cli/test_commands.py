"""The measuring commands, run on small models."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app

RUNNER = CliRunner()
GOLDEN = Path(__file__).parents[2] / "golden"


def run(*arguments: object) -> str:
    result = RUNNER.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_verify_exits_with_1_when_a_recording_does_not_fit(tiny_checkpoint: Path) -> None:
    output = run("verify", "--checkpoint", GOLDEN / "model", GOLDEN, "--group", "vae")
    assert re.search(r"^decoded +1x3x1x80x112 .* ok$", output, re.MULTILINE)
    assert "6 checks, all hold" in output
    other = ["verify", "--checkpoint", str(tiny_checkpoint), str(GOLDEN), "--group", "names"]
    result = RUNNER.invoke(app, other)
    assert result.exit_code == 1
    assert re.search(r"4 checks, \d FAILED", result.output)


def test_verify_shows_only_failures_if_asked() -> None:
    arguments = ["--checkpoint", GOLDEN / "model", GOLDEN, "--group", "vae", "--failures-only"]
    output = run("verify", *arguments)
    assert "decoded" not in output
    assert "6 checks, all hold" in output


def test_a_mesh_prints_every_check_once() -> None:
    arguments = ["--checkpoint", GOLDEN / "model", GOLDEN, "--group", "noise", "--mode", "cfg2"]
    command = [sys.executable, "-m", "cli.app", "verify", *map(str, arguments)]
    process = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=GOLDEN.parents[1], check=True
    )
    lines = process.stdout.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("seed")] == [
        "seed0", "seed1", "seed123456789", "seed2147483653", "seed42",
    ]  # fmt: skip
    assert lines[-1] == "5 checks, all hold"


def test_bench_step_reports_a_ratio_and_writes_its_figures(tmp_path: Path) -> None:
    figures = tmp_path / "step.json"
    model = ["--hidden", 64, "--layers", 1, "--experts", 4, "--top-k", 2]
    size = [*model, "--image-tokens", 64, "--repeats", 1]
    output = run("bench", "step", *size, "--json", figures)
    assert re.search(r"^ratio +\d\.\d+", output, re.MULTILINE)
    measured = json.loads(figures.read_text())
    assert measured["ratio"] == pytest.approx(measured["bare_s"] / measured["step_s"])
    assert (measured["hidden"], measured["layers"]) == (64, 1)


def test_a_quantized_folder_generates_and_its_errors_are_printed(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    output = run("quantize", "--checkpoint", tiny_checkpoint, small, "--scheme", "int4")
    assert "experts down" in output
    assert f"hyimage serve --checkpoint {small}" in output
    arguments = ["--size", "256x256", "--steps", "1", "--checkpoint", small]
    run("generate", "a red fox", "-o", tmp_path / "fox.png", *arguments)
    again = ["quantize", "--checkpoint", str(small), str(tmp_path / "x")]
    result = RUNNER.invoke(app, again)
    assert result.exit_code == 2
    assert "quantized already" in result.output.replace("\n", " ")


def test_bench_quantization_compares_every_scheme(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    arguments = ["--num-prompts", 1, "--steps", 2, "--checkpoint", tiny_checkpoint]
    run("bench", "quantization", *arguments, "--json", rows)
    measured = {row["scheme"]: row for row in json.loads(rows.read_text())}
    assert measured.keys() == {"bfloat16", "float32", "fp8", "int8", "int4"}
    assert measured["int8"]["psnr"] > measured["int4"]["psnr"] > 15
    assert measured["int4"]["num_bytes"] < measured["int8"]["num_bytes"]


def test_bench_loading_reports_speed_and_generates_within_a_limit(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    figures = tmp_path / "loading.json"
    arguments = ["--rounds", 1, "--limit-gb", 2, "--checkpoint", tiny_checkpoint]
    output = run("bench", "loading", *arguments, "--json", figures)
    measured = json.loads(figures.read_text())
    loaded, limited = measured["LoadingResult"], measured["LimitedResult"]
    stored = sum(path.stat().st_size for path in tiny_checkpoint.glob("*.safetensors"))
    assert loaded["file_bytes"] == stored
    assert limited["peak_bytes"] < limited["limit_bytes"]
    assert "within 2 GB: loaded in" in output


def test_bench_loading_says_which_limit_was_too_low_and_what_to_set(tiny_checkpoint: Path) -> None:
    arguments = ["--rounds", "1", "--limit-gb", "0.1", "--checkpoint", str(tiny_checkpoint)]
    result = RUNNER.invoke(app, ["bench", "loading", *arguments])
    assert result.exit_code == 2
    message = " ".join(result.output.split())
    assert "error generation within 0.1 GB failed" in message
    assert "worker.device_memory_gb" in message
    assert "Traceback" not in message


def test_bench_text_writes_its_figures(tiny_checkpoint: Path, tmp_path: Path) -> None:
    figures = tmp_path / "text.json"
    arguments = ["--prompt-tokens", 20, "--tokens", 4, "--checkpoint", tiny_checkpoint]
    output = run("bench", "text", *arguments, "--json", figures)
    measured = json.loads(figures.read_text())
    assert measured["tokens_per_s"] == pytest.approx(1 / measured["step_s"])
    assert f"{measured['tokens_per_s']:.0f} tokens/s" in output


def test_record_makes_a_recording_that_verify_confirms(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    output = run("record", "--checkpoint", tiny_checkpoint, tmp_path)
    assert f"hyimage verify --checkpoint {tiny_checkpoint} {tmp_path}" in output
    assert "all hold" in run("verify", "--checkpoint", tiny_checkpoint, tmp_path)
