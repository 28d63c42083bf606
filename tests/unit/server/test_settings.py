"""Settings: what a file, a variable or a flag may hold, and how a refusal reads."""

from pathlib import Path

import pytest

from server.settings import Settings, SettingsError, load_settings
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


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("HYIMAGE_SERVR__PORT", r"did you mean HYIMAGE_SERVER__PORT\?"),
        ("HYIMAGE_PORT", "SERVER__PORT|SECTION__FIELD"),
        ("HYIMAGE_API_KEYES", r"did you mean HYIMAGE_API_KEYS\?"),
        ("HYIMAGE_ZZZZ", "write HYIMAGE_SECTION__FIELD"),
    ],
)
def test_a_variable_that_is_no_setting_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, hint: str
) -> None:
    monkeypatch.setenv(name, "9")
    with pytest.raises(SettingsError, match=f"variable {name} is no setting; .*({hint})"):
        load_settings(None)


@pytest.mark.parametrize("name", ["HYIMAGE_API_KEYS", "HYIMAGE_API_KEY", "hyimage_server__port"])
def test_other_variables_of_ours_are_let_through(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "9")
    load_settings(None)


def test_a_wrong_value_is_blamed_on_its_variable_file_or_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[server]\ndrain_s = -1\n")
    monkeypatch.setenv("HYIMAGE_SERVER__PORT", "99999")
    with pytest.raises(SettingsError) as caught:
        load_settings(file)
    of_variable, of_file = sorted(str(caught.value).split("; "), reverse=True)
    assert of_variable.startswith("variable HYIMAGE_SERVER__PORT: server.port: ")
    assert "'99999'" in of_variable
    assert of_file.startswith(f"settings from {file}: server.drain_s: ")
    monkeypatch.delenv("HYIMAGE_SERVER__PORT")
    with pytest.raises(SettingsError, match=r"^--port 99999 \(server\.port\): .*65535"):
        load_settings(None, server__port=99999)


def test_a_list_in_a_variable_that_is_not_json_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYIMAGE_EGRESS__ALLOWED_NETWORKS", "10.0.0.0/8")
    with pytest.raises(SettingsError, match=r"in HYIMAGE_EGRESS__ALLOWED_NETWORKS cannot"):
        load_settings(None)
    monkeypatch.setenv("HYIMAGE_EGRESS__ALLOWED_NETWORKS", '["10.0.0.0/8"]')
    assert load_settings(None).egress.allowed_networks == ("10.0.0.0/8",)


def stored(settings: Settings) -> tuple[str, str, str]:
    return settings.images.store, settings.tasks.database_url, settings.keys.file


def test_paths_of_a_file_start_at_the_file_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    file = here / "settings.toml"
    file.write_text('[worker]\ncheckpoint = "../weights"\n[keys]\nfile = "/etc/keys.json"\n')
    monkeypatch.chdir(there)
    for path in (file, Path("../here/settings.toml")):
        settings = load_settings(path)
        assert settings.worker.checkpoint == f"{tmp_path}/weights"
        assert stored(settings) == (
            f"{here}/data/images", f"sqlite:///{here}/data/tasks.db", "/etc/keys.json"
        )  # fmt: skip


def test_data_are_in_data_dir_unless_a_setting_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stored(load_settings(None)) == (
        "data/images",
        "sqlite:///data/tasks.db",
        "data/keys.json",
    )
    monkeypatch.setenv("HYIMAGE_SERVER__DATA_DIR", "/srv/hyimage")
    file = tmp_path / "settings.toml"
    file.write_text('[images]\nstore = "s3://bucket/x"\n[tasks]\ndatabase_url = "sqlite:///t.db"\n')
    assert stored(load_settings(file)) == (
        "s3://bucket/x", f"sqlite:///{tmp_path}/t.db", "/srv/hyimage/keys.json"
    )  # fmt: skip


def test_a_section_that_is_no_table_is_a_fault_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    for text in ("server = 5", "images = [1]", "[server]\ndata_dir = 5"):
        file.write_text(text)
        with pytest.raises(SettingsError, match=str(file)):
            load_settings(file)
