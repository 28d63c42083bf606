"""`hyimage config show`: each setting with its source, and no secret among them."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.app import app
from server.settings import Settings
from server.settings_sources import hide_secrets

RUNNER = CliRunner()


def show(*options: object, environment: dict[str, str] | None = None) -> dict[str, Any]:
    arguments = ["config", "show", "--json", *map(str, options)]
    result = RUNNER.invoke(app, arguments, env=environment)
    assert result.exit_code == 0, result.output
    shown: dict[str, Any] = json.loads(result.output)
    return shown


def test_every_setting_is_there_with_its_default() -> None:
    shown = show()
    settings = Settings()
    names = [
        f"{section}.{field}"
        for section in type(settings).model_fields
        for field in type(getattr(settings, section)).model_fields
    ]
    assert list(shown) == names
    assert shown["server.port"] == {"value": 8000, "kind": "default", "source": ""}
    assert shown["tasks.database_url"]["source"] == "in server.data_dir"


def test_each_source_is_named_and_the_strongest_wins(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('[server]\nport = 1\nhost = "10.0.0.1"\ndrain_s = 1\n[api]\nmodel = "a"\n')
    environment = {
        "HYIMAGE_SERVER__HOST": "10.0.0.2", "hyimage_server__drain_s": "2",
        "HYIMAGE_EGRESS": '{"upload_tries": 9}',
    }  # fmt: skip
    shown = show("--config", file, "--port", 3, environment=environment)
    assert shown["server.port"] == {"value": 3, "kind": "flag", "source": "--port"}
    assert shown["server.host"] == {
        "value": "10.0.0.2", "kind": "variable", "source": "HYIMAGE_SERVER__HOST",
    }  # fmt: skip
    assert shown["server.drain_s"]["source"] == "hyimage_server__drain_s"
    assert shown["egress.upload_tries"]["source"] == "HYIMAGE_EGRESS"
    assert shown["egress.timeout_s"]["kind"] == "default"
    assert shown["api.model"] == {"value": "a", "kind": "file", "source": str(file)}
    assert shown["server.data_dir"] == {
        "value": str(tmp_path / "data"), "kind": "default", "source": f"beside {file}",
    }  # fmt: skip


def test_changed_leaves_the_defaults_out() -> None:
    assert list(show("--changed", "--port", 9000)) == ["server.port"]


def test_the_table_has_the_same() -> None:
    result = RUNNER.invoke(app, ["config", "show", "--changed", "--port", "9000"])
    assert [cell.strip() for cell in result.output.splitlines()[3].split("│")[1:4]] == [
        "server.port", "9000", "flag --port",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"HYIMAGE_SERVER__PORT": "x"}, "variable HYIMAGE_SERVER__PORT: server.port"),
        ({"HYIMAGE_SERVR__PORT": "1"}, "did you mean HYIMAGE_SERVER__PORT?"),
    ],
)
def test_what_is_wrong_is_named_with_its_source(
    environment: dict[str, str], complaint: str
) -> None:
    result = RUNNER.invoke(app, ["config", "show"], env=environment)
    assert result.exit_code == 2
    assert complaint in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("postgresql+psycopg://me:pw@db/hyimage", "postgresql+psycopg://***@db/hyimage"),
        ("redis://me:p@w@db/0", "redis://***@db/0"),
        ("s3://KEY:SECRET@bucket/images", "s3://***@bucket/images"),
        ("https://host/v1?api_key=abc&a=b", "https://host/v1?api_key=***&a=b"),
        ("postgresql://db/x?user=me&password=pw", "postgresql://db/x?user=me&password=***"),
        ("sqlite:///data/tasks.db", "sqlite:///data/tasks.db"),
        (["https://a:b@host", 1], ["https://***@host", 1]),
        ({"a": "https://a:b@host"}, {"a": "https://***@host"}),
    ],
)
def test_secrets_of_urls_are_hidden(value: object, shown: object) -> None:
    assert hide_secrets(value) == shown


def test_no_secret_of_a_variable_is_printed() -> None:
    environment = {
        "HYIMAGE_TASKS__DATABASE_URL": "postgresql+psycopg://me:hidden@db/x",
        "HYIMAGE_API_KEYS": "hidden",
    }
    assert "hidden" not in json.dumps(show(environment=environment))
