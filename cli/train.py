"""`hyimage train-tiny`: the shipped tiny checkpoint, made from nothing."""

from pathlib import Path
from typing import Annotated

import typer

from cli.console import stdout
from cli.options import reported_errors


def train_tiny_checkpoint(
    folder: Annotated[
        Path, typer.Argument(help="Where all state lies; start again with it to go on.")
    ] = Path("~/.cache/hyimage-training"),
) -> None:
    """Make the tiny checkpoint from nothing: artwork, VAE, transformer, export. Takes hours.

    Example: hyimage train-tiny /data/tiny
    """
    from training.recipe import train_tiny

    with reported_errors():
        train_tiny(folder.expanduser(), report=stdout.print)
