from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from server.api.auth import Keys
from server.runware.errors import TaskError

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


def test_a_server_without_keys_stays_on_loopback(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = RUNNER.invoke(
        app,
        ["serve", "--host", "0.0.0.0", "--checkpoint", str(tiny_checkpoint)],
        env={"HYIMAGE_KEYS__FILE": str(tmp_path / "none.json"), "HYIMAGE_API_KEYS": ""},
    )
    assert result.exit_code == 2
    assert "hyimage keys add" in result.output.replace("\n", " ")
