from pathlib import Path

import pytest

from server.settings import SettingsError, load_settings
from server.tasks.store import TaskStore


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
    load_settings(Path(__file__).parents[3] / "configs" / name)
