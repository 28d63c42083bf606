"""`hyimage quantize`: a smaller copy of a checkpoint, with the error of every layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from cli.console import progress_bar, stdout
from cli.options import RequiredCheckpoint, Scheme, reported_errors
from model.config_file import load_config

if TYPE_CHECKING:
    from tools.quantize import QuantizedCheckpoint


def quantize(
    checkpoint: RequiredCheckpoint,
    folder: Annotated[Path, typer.Argument(help="The new folder; it must not exist.")],
    scheme: Annotated[Scheme, typer.Option(help="How weights are stored.")] = "int8",
    device: Annotated[str, typer.Option(help="Where weights are quantized: cpu or cuda.")] = "cpu",
    threads: Annotated[
        int, typer.Option(min=0, help="Threads that quantize side by side. 0: all cores.")
    ] = 0,
) -> None:
    """Write a checkpoint with quantized weights: half the size (int8, fp8) or 31 % of it (int4).

    The experts, attention and shared experts are quantized; router, norms, embeddings, patch
    layers, head and VAE are copied. Needs memory for one shard, and the time to read and write
    all of it. --device cuda quantizes on a GPU.

    Example: hyimage quantize --checkpoint checkpoints/tiny /tmp/tiny-int4 --scheme int4
    """
    with reported_errors():
        load_config(checkpoint)
        from tools.quantize import quantize_checkpoint

        with progress_bar() as report:
            result = quantize_checkpoint(
                checkpoint, folder, scheme, report, device, threads or None
            )
        stdout.print(_table(result))
        stdout.print(
            f"{folder}: {result.target_bytes / 1e9:.2f} GB instead of "
            f"{result.source_bytes / 1e9:.2f}. Serve it with\n"
            f"hyimage serve --checkpoint {folder}"
        )


def _table(result: QuantizedCheckpoint) -> Table:
    table = Table("layer", *result.kinds, title="error of the quantized weights, % of their size")
    for layer, errors in result.errors:
        cells = (f"{100 * errors[kind]:.3f}" if kind in errors else "" for kind in result.kinds)
        table.add_row("all" if layer is None else str(layer), *cells)
    return table
