"""`hyimage doctor`: what this machine lacks to serve a checkpoint, and what to do next."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from cli.console import stdout
from cli.options import ConfigOption, read_settings, reported_errors
from cli.plan import commands_of

_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(
    folder: Annotated[
        str | None,
        typer.Argument(
            metavar="[CHECKPOINT]", help="Folder of a checkpoint; by default the settings' own."
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Check devices, driver, memory, port, data folder, checkpoint and disk; exit 1 if one fails.

    Nothing is loaded, changed or sent. What fits on GPUs is counted as by `hyimage plan`.

    Example: hyimage doctor checkpoints/tiny --config configs/tiny.toml
    """
    with reported_errors():
        settings = read_settings(config, folder)
        from tools.doctor.run import run_checks

        checks = []
        for check in run_checks(settings, commands_of):
            checks.append(check)
            if not as_json:
                status = Text(f"{check.status:4}", style=_STYLES[check.status])
                stdout.print(status, Text(f"{check.name}: {check.sentence}"))
                for line in check.next_step.splitlines():
                    stdout.print(f"       {line}")
    is_ok = not any(check.status == "fail" for check in checks)
    if as_json:
        stdout.print(json.dumps({"is_ok": is_ok, "checks": [asdict(c) for c in checks]}, indent=2))
    raise typer.Exit(0 if is_ok else 1)
