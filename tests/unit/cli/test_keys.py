from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from server.runware.errors import TaskError
from server.tasks.keys import Keys

RUNNER = CliRunner()


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


def test_limits_are_shown_changed_and_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYIMAGE_KEYS__FILE", str(tmp_path / "keys.json"))
    limits = ["--expires", "2020-01-31T18:00+01:00", "--images-per-day", "5", "--weight", "2.5"]
    assert RUNNER.invoke(app, ["keys", "add", "alice", *limits]).exit_code == 0
    assert RUNNER.invoke(app, ["keys", "list"]).output == (
        "alice, expired 2020-01-31 17:00 UTC, 5 images a day, weight 2.5\n"
    )
    none = ["--expires", "never", "--images-per-day", "0"]
    assert RUNNER.invoke(app, ["keys", "change", "alice", *none]).exit_code == 0
    assert RUNNER.invoke(app, ["keys", "list"]).output == "alice, weight 2.5\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["add", "bob", "--weight", "0"], "weight"),
        (["add", "bob", "--expires", "soon"], "'soon' is not understood"),
        (["change", "nobody", "--weight", "2"], "no key called 'nobody'"),
        (["add", "x" * 65], "name"),
    ],
)
def test_what_a_key_cannot_have_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], named: str
) -> None:
    monkeypatch.setenv("HYIMAGE_KEYS__FILE", str(tmp_path / "keys.json"))
    result = RUNNER.invoke(app, ["keys", *arguments])
    assert result.exit_code == 2
    assert named in " ".join(result.output.split())
    assert not (tmp_path / "keys.json").exists()


def test_a_server_without_keys_stays_on_loopback(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = RUNNER.invoke(
        app,
        ["serve", "--host", "0.0.0.0", "--checkpoint", str(tiny_checkpoint)],
        env={"HYIMAGE_KEYS__FILE": str(tmp_path / "none.json"), "HYIMAGE_API_KEYS": ""},
    )
    assert result.exit_code == 2
    assert "hyimage keys add" in result.output.replace("\n", " ")
