"""What all commands share: options, settings, and errors as one line."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from server.process import configure_process
from server.runware.errors import TaskError
from server.settings import Settings, load_settings

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="TOML settings file, for example configs/tiny.toml."),
]
CheckpointOption = Annotated[
    str | None, typer.Option("--checkpoint", help="Folder with config.json and the weights.")
]


def read_settings(config: Path | None, checkpoint: str | None) -> Settings:
    """Return the settings of a file, with the checkpoint of the command line if it names one."""
    return load_settings(config, worker__checkpoint=checkpoint)


class reported_errors:  # noqa: N801 -- used as a `with` statement, like contextlib's
    """Turn what a user can cause into one line and exit status 2; all else is a traceback."""

    def __enter__(self) -> None:
        configure_process()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, TaskError | ValueError) and hasattr(error, "code"):
            Console(stderr=True).print(f"[red]error[/red] {error}", highlight=False)
            raise typer.Exit(2) from None
