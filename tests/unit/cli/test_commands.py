import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from cli.app import app
from server.api.auth import Keys
from server.runware.errors import TaskError
from server.settings import SettingsError, load_settings
from server.tasks.store import TaskStore

RUNNER = CliRunner()


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


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["-o", "fox.gif"], ".gif"),
        (["-o", "no/such/folder/fox.png"], "no/such/folder"),
        (["--size", "big"], "WIDTHxHEIGHT"),
        (["--size", "512x512"], "512x512"),
        (["--checkpoint", "nowhere"], "nowhere/config.json"),
    ],
)
def test_generate_refuses_in_one_line_what_it_cannot_do(
    tiny_checkpoint: Path, tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    base = ["-o", str(tmp_path / "x.png"), "--checkpoint", str(tiny_checkpoint)]
    result = RUNNER.invoke(app, ["generate", "a red fox", *base, *arguments])
    assert result.exit_code == 2
    assert complaint in result.output.replace("\n", "")
    assert "Traceback" not in result.output


def test_verify_exits_with_1_when_a_recording_does_not_fit(tiny_checkpoint: Path) -> None:
    golden = Path(__file__).parents[1] / "golden"
    fitting = [str(golden / "model"), str(golden), "--group", "vae"]
    assert RUNNER.invoke(app, ["verify", *fitting]).exit_code == 0
    other = [str(tiny_checkpoint), str(golden), "--group", "names"]
    assert RUNNER.invoke(app, ["verify", *other]).exit_code == 1


def test_bench_step_reports_a_ratio_and_writes_its_figures(tmp_path: Path) -> None:
    size = [
        "--hidden",
        "64",
        "--layers",
        "1",
        "--experts",
        "4",
        "--top-k",
        "2",
        "--image-tokens",
        "64",
        "--repeats",
        "1",
    ]
    result = RUNNER.invoke(app, ["bench", "step", *size, "--json", str(tmp_path / "step.json")])
    assert result.exit_code == 0, result.output
    assert "ratio" in result.output
    assert '"bare_s"' in (tmp_path / "step.json").read_text()


def test_a_quantized_folder_generates_and_its_errors_are_told(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    result = RUNNER.invoke(app, ["quantize", str(tiny_checkpoint), str(small), "--scheme", "int4"])
    assert result.exit_code == 0, result.output
    assert "experts down" in result.output
    assert str(small) in result.output.replace("\n", "")
    output = tmp_path / "fox.png"
    arguments = ["--size", "256x256", "--steps", "1", "--checkpoint", str(small)]
    result = RUNNER.invoke(app, ["generate", "a red fox", "-o", str(output), *arguments])
    assert result.exit_code == 0, result.output
    again = RUNNER.invoke(app, ["quantize", str(small), str(tmp_path / "x")])
    assert again.exit_code == 2
    assert "quantized already" in again.output.replace("\n", " ")


def test_bench_quantization_compares_every_scheme(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    arguments = ["--count", "1", "--steps", "2", "--checkpoint", str(tiny_checkpoint)]
    result = RUNNER.invoke(app, ["bench", "quantization", *arguments, "--json", str(rows)])
    assert result.exit_code == 0, result.output
    measured = {row["scheme"]: row for row in json.loads(rows.read_text())}
    assert measured.keys() == {"bfloat16", "float32", "fp8", "int8", "int4"}
    assert measured["int8"]["psnr"] > measured["int4"]["psnr"] > 15
    assert measured["int4"]["num_bytes"] < measured["int8"]["num_bytes"]


def test_bench_quality_keeps_what_it_has_when_it_is_stopped(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ["--json", str(tmp_path / "q.json"), "--csv", str(tmp_path / "q.csv")]
    arguments = ["--count", "1", "--steps", "6", "--no-schedulers", *files]
    command = ["bench", "quality", *arguments, "--checkpoint", str(tiny_checkpoint)]
    monkeypatch.setattr("tools.bench.quality.EULER_STEPS", (4, 5))
    monkeypatch.setattr("tools.bench.quality.FB_READINESS", ())
    monkeypatch.setattr("tools.bench.quality.TRUTH_STEPS", 8)
    assert RUNNER.invoke(app, command).exit_code == 0
    rows = json.loads((tmp_path / "q.json").read_text())
    assert [row["policy"] for row in rows[:3]] == ["none"] * 3
    assert {"teaCache", "naive", "forecast order 1"} <= {row["policy"] for row in rows}
    assert rows[2]["psnr"] == 99  # the base is its own image
    monkeypatch.setattr("tools.bench.quality.TEA_DISTANCES", ("no number",))
    assert RUNNER.invoke(app, command).exit_code == 1
    kept = json.loads((tmp_path / "q.json").read_text())
    assert [{**row, "seconds": 0} for row in kept] == [{**row, "seconds": 0} for row in rows[:3]]
    assert len((tmp_path / "q.csv").read_text().splitlines()) == 4


def test_bench_load_reports_speed_and_generates_within_a_limit(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    figures = tmp_path / "load.json"
    arguments = ["--rounds", "1", "--limit-gb", "2", "--checkpoint", str(tiny_checkpoint)]
    result = RUNNER.invoke(app, ["bench", "load", *arguments, "--json", str(figures)])
    assert result.exit_code == 0, result.output
    measured = json.loads(figures.read_text())
    loaded, limited = measured["LoadResult"], measured["LimitedResult"]
    stored = sum(path.stat().st_size for path in tiny_checkpoint.glob("*.safetensors"))
    assert loaded["file_bytes"] == stored
    assert limited["peak_bytes"] < limited["limit_bytes"]


def test_bench_load_says_when_a_limit_is_too_low(tiny_checkpoint: Path) -> None:
    arguments = ["--rounds", "1", "--limit-gb", "0.1", "--checkpoint", str(tiny_checkpoint)]
    result = RUNNER.invoke(app, ["bench", "load", *arguments])
    assert result.exit_code == 2
    assert "error" in result.output


@pytest.mark.parametrize("command", [[], ["serve"], ["generate"], ["verify"], ["bench", "step"]])
def test_help_explains_every_command(command: list[str]) -> None:
    result = RUNNER.invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert len(result.output) > 200


def test_flags_override_the_environment_and_that_overrides_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('[server]\nport = 1111\nhost = "10.0.0.1"\n')
    assert load_settings(file).server.port == 1111
    monkeypatch.setenv("HYIMAGE_SERVER__PORT", "2222")
    settings = load_settings(file)
    assert (settings.server.port, settings.server.host) == (2222, "10.0.0.1")
    assert load_settings(file, server__port=3333).server.port == 3333


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[server]\nprot = 1", "server.prot"),
        ("[server]\nport = 99999", "server.port"),
        ('[worker]\ndtype = "int8"', "worker.dtype"),
        ("[nonsense]\na = 1", "nonsense"),
        ("[server", "not TOML"),
    ],
)
def test_a_faulty_settings_file_names_the_field(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=complaint) as caught:
        load_settings(file)
    assert "settings.toml" in str(caught.value)


@pytest.mark.parametrize(
    "url", ["sqlite+aiosqlite:///x.db", "nonsense", "oracle://x", "sqlite:////proc/x/y.db"]
)
def test_a_database_that_cannot_be_used_is_one_sentence(url: str) -> None:
    with pytest.raises(SettingsError, match="database_url") as caught:
        TaskStore(url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tiny.toml", "hunyuan_image_3.toml"])
def test_the_shipped_settings_files_are_valid(name: str) -> None:
    load_settings(Path(__file__).parents[2] / "configs" / name)


def test_keys_are_shown_once_kept_as_hashes_and_can_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys.json"
    monkeypatch.setenv("HYIMAGE_KEYS__FILE", str(file))
    key = RUNNER.invoke(app, ["keys", "add", "alice"]).output.strip()
    assert len(key) > 30
    assert key not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    assert Keys.load(file).check(key) == "alice"
    with pytest.raises(TaskError, match="invalidApiKey"):
        Keys.load(file).check(key + "x")
    assert RUNNER.invoke(app, ["keys", "add", "alice"]).exit_code == 2
    assert RUNNER.invoke(app, ["keys", "list"]).output.split() == ["alice"]
    assert RUNNER.invoke(app, ["keys", "remove", "alice"]).exit_code == 0
    assert RUNNER.invoke(app, ["keys", "remove", "alice"]).exit_code == 2
    assert Keys.load(file).check(None) == "anybody"


def test_a_server_without_keys_stays_on_loopback(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = RUNNER.invoke(
        app,
        ["serve", "--host", "0.0.0.0", "--checkpoint", str(tiny_checkpoint)],
        env={"HYIMAGE_KEYS__FILE": str(tmp_path / "none.json"), "HYIMAGE_API_KEYS": ""},
    )
    assert result.exit_code == 2
    assert "hyimage keys add" in result.output.replace("\n", " ")
