"""`hyimage config`: the settings that a server would start with, and where each comes from."""

import json
import os
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from cli.console import stdout
from cli.options import CheckpointOption, ConfigOption, reported_errors
from server.logs import Form, Level
from server.settings import load_settings
from server.settings_sources import Sourced, list_sourced

config = typer.Typer(
    no_args_is_help=True,
    help="The settings of a server: defaults, then a file, then variables, then flags.",
)


@config.command()
def show(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="As of hyimage serve.")] = None,
    port: Annotated[int | None, typer.Option(help="As of hyimage serve.")] = None,
    checkpoint: CheckpointOption = None,
    log_level: Annotated[Level | None, typer.Option(help="As of hyimage serve.")] = None,
    log_format: Annotated[Form | None, typer.Option(help="As of hyimage serve.")] = None,
    changed: Annotated[bool, typer.Option("--changed", help="Without the defaults.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List the effective settings, each with its source; exit 2 and the source of what is wrong.

    It takes the options of `hyimage serve`. Passwords and keys in URLs are not shown.

    Example: hyimage config show --config configs/tiny.toml --port 9000
    """
    flags: dict[str, Any] = {
        "server__host": host, "server__port": port, "worker__checkpoint": checkpoint,
        "logging__level": log_level, "logging__format": log_format,
    }  # fmt: skip
    with reported_errors():
        settings = load_settings(config, **flags)
    rows = list_sourced(settings, config, os.environ, flags)
    shown = [row for row in rows if not (changed and row.kind == "default")]
    if as_json:
        members = {row.name: {k: v for k, v in asdict(row).items() if k != "name"} for row in shown}
        stdout.print(json.dumps(members, indent=2))
        return
    stdout.print(_table(shown))


def _table(rows: list[Sourced]) -> Table:
    table = Table("setting", "value", "source")
    for row in rows:
        value = row.value if isinstance(row.value, str) else json.dumps(row.value)
        table.add_row(row.name, value, f"{row.kind} {row.source}".strip())
    return table
