"""Settings: what a file, a variable or a flag may hold, and how a refusal reads."""

from pathlib import Path

import pytest

from server.settings import SettingsError, load_settings

RENAMED = [
    ("server", "is_open", "true", "server.allow_unauthenticated"),
    ("server", "trusts_proxy_headers", "true", "server.trust_proxy_headers"),
    ("images", "folder", '"pictures"', "images.store"),
    ("worker", "memory_gb", "40", "worker.device_memory_gb"),
    ("worker", "cfg_ranks", "2", "worker.cfg_parallel_size"),
    ("worker", "tensor_ranks", "2", "worker.tensor_parallel_size"),
    ("worker", "expert_split", '"expert"', "worker.expert_parallel"),
]


@pytest.mark.parametrize(("section", "old", "value", "new"), RENAMED)
def test_an_old_name_in_a_file_is_refused_with_the_new_one(
    tmp_path: Path, section: str, old: str, value: str, new: str
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f"[{section}]\n{old} = {value}\n")
    with pytest.raises(SettingsError, match=rf"{section}\.{old} is called {new}.* now") as caught:
        load_settings(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(("section", "old", "value", "new"), RENAMED)
def test_an_old_name_in_a_variable_is_refused_with_the_new_one(
    monkeypatch: pytest.MonkeyPatch, section: str, old: str, value: str, new: str
) -> None:
    monkeypatch.setenv(f"HYIMAGE_{section}__{old}".upper(), value.strip('"'))
    with pytest.raises(SettingsError, match=rf"{section}\.{old} is called {new}.* now"):
        load_settings(None)


@pytest.mark.parametrize("new", [new for *_, new in RENAMED])
def test_every_new_name_is_a_setting(new: str) -> None:
    section, field = new.split(".")
    assert hasattr(getattr(load_settings(None), section), field)


def test_an_unknown_name_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[server]\nprot = 9000\n")
    with pytest.raises(SettingsError, match=r"server\.prot: .*not permitted"):
        load_settings(file)


def test_the_environment_wins_over_the_file_and_flags_over_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[server]\nport = 1\nmax_connections = 1\nmax_tasks_per_key = 1\n")
    monkeypatch.setenv("HYIMAGE_SERVER__PORT", "2")
    monkeypatch.setenv("HYIMAGE_SERVER__MAX_CONNECTIONS", "2")
    server = load_settings(file, server__port=3).server
    assert (server.port, server.max_connections, server.max_tasks_per_key) == (3, 2, 1)
