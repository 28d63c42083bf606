"""Settings: what a file, a variable or a flag may hold, and how a refusal reads."""

from pathlib import Path

import pytest

from server.settings import SettingsError, load_settings
from server.tasks.store import TaskStore

RENAMED = [
    ("worker", "compile_experts", "true", "worker.compile_kernels"),
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


def test_a_setting_that_is_gone_is_refused_with_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[egress]\nwebhook_first_delay_s = 0.2\n")
    with pytest.raises(SettingsError, match=r"egress\.webhook_first_delay_s is gone .*; remove it"):
        load_settings(file)
