"""Options that several commands share, the settings they come to, and errors as one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.console import print_error
from model.config_file import load_config
from server.process import configure_process
from server.runware.errors import TaskError
from server.settings import Settings, load_settings

Scheme = Literal["fp8", "int8", "int4"]
Quantization = Literal["auto", "none", "fp8", "int8", "int4"]
Dtype = Literal["float32", "bfloat16", "float16"]

ART_FOLDER = Path("~/.cache/hyimage-training/art")
_SIZE = re.compile(r"(\d+)x(\d+)")


def check_output(path: Path | None) -> Path | None:
    """Return the path of a file to write; refuse a folder that does not exist, before any work."""
    if path is not None and not path.parent.is_dir():
        raise typer.BadParameter(f"the folder {path.parent} does not exist; make it first")
    if path is not None and path.is_dir():
        raise typer.BadParameter(f"{path} is a folder; name a file in it")
    return path


ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="TOML settings file, for example configs/tiny.toml."),
]
CheckpointOption = Annotated[
    str | None,
    typer.Option("--checkpoint", help="Folder with config.json and the weights."),
]
RequiredCheckpoint = Annotated[
    Path,
    typer.Option(
        "--checkpoint",
        help="Folder with config.json and the weights, for example checkpoints/tiny.",
        show_default=False,
    ),
]
JsonOption = Annotated[
    Path | None,
    typer.Option("--json", help="Also write the figures here.", callback=check_output),
]
GuidanceOption = Annotated[float, typer.Option("--guidance", help="Guidance scale.", min=1, max=50)]
NumPromptsOption = Annotated[int, typer.Option("--num-prompts", help="Prompts to use.", min=1)]
StepsOption = Annotated[int, typer.Option("--steps", help="Denoising steps.", min=1, max=100)]


def parse_size(size: str) -> tuple[int, int]:
    """Return (width, height) in pixels of "WIDTHxHEIGHT".

    Raises:
        BadParameter: it is not written like that.
    """
    match = _SIZE.fullmatch(size)
    if match is None:
        raise typer.BadParameter(f"{size!r} is not understood; write WIDTHxHEIGHT or auto")
    return int(match[1]), int(match[2])


def read_settings(config: Path | None, checkpoint: str | Path | None = None) -> Settings:
    """Return the settings of a file, with the checkpoint of the command line if it names one."""
    return load_settings(config, worker__checkpoint=None if checkpoint is None else str(checkpoint))


def read_model_settings(config: Path | None, checkpoint: str | Path | None = None) -> Settings:
    """Return the same for a command that loads the checkpoint, whose config.json can be read.

    Raises:
        ConfigError: it cannot; said before torch is imported, which takes seconds.
    """
    settings = read_settings(config, checkpoint)
    load_config(Path(settings.worker.checkpoint))
    return settings


@contextmanager
def reported_errors() -> Iterator[None]:
    """Turn what a user can cause into one line and exit status 2; all else is a traceback."""
    configure_process()
    try:
        yield
    except (TaskError, ValueError) as error:
        if not hasattr(error, "code"):
            raise
        print_error(str(error))
        raise typer.Exit(2) from None
