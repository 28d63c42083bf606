"""`hyimage ledger`: what every mode, dtype, quantization, cache and solver costs and keeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from cli.console import print_error, progress_bar, stderr, stdout
from cli.options import (
    ART_FOLDER,
    CheckpointOption,
    ConfigOption,
    GuidanceOption,
    parse_size,
    read_model_settings,
    reported_errors,
)

if TYPE_CHECKING:
    from tools.ledger.book import Figures, Ledger


def ledger(
    folder: Annotated[Path, typer.Argument(help="Where ledger.json and ledger.html are written.")],
    num_prompts: Annotated[
        int, typer.Option("--num-prompts", help="Images of each cell.", min=1)
    ] = 8,
    steps: Annotated[int, typer.Option(help="Steps of the base.", min=2, max=100)] = 20,
    guidance: GuidanceOption = 7.0,
    prompts: Annotated[Path | None, typer.Option(help="Your own prompts, one a line.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT of all images.")] = None,
    compare: Annotated[
        Path | None,
        typer.Option(help="An older ledger.json: name every change of more than 0.1 dB or 2 %."),
    ] = None,
    config: ConfigOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Measure what each way of generating costs and keeps, one cell after the other.

    A cell is one mode, dtype, quantization, cache preset, guidance or solver against float32
    without a cache, or a pair of them. What stops a run costs one cell: the same command goes on.
    With --compare the exit status is 1 if anything changed. There are 32 cells.

    Example: hyimage ledger runs/ledger --checkpoint checkpoints/tiny --num-prompts 4
    """
    with reported_errors():
        settings = read_model_settings(config, checkpoint)
        from tools.ledger.book import load_ledger
        from tools.ledger.compare import list_changes
        from tools.ledger.run import LedgerOptions, plan_ledger, run_ledger

        old = None if compare is None else load_ledger(compare)
        options = LedgerOptions(
            num_prompts=num_prompts,
            steps=steps,
            guidance=guidance,
            prompts=prompts,
            size_px=None if size is None else parse_size(size),
        )
        plan = plan_ledger(settings, options, ART_FOLDER.expanduser())
        with progress_bar() as report:
            new = run_ledger(folder, settings, plan, report, _show_cell)
        _print(folder, new)
        if old is not None:
            changes = list_changes(old, new)
            for line in changes:
                stdout.print(line)
            if changes:
                print_error(f"{len(changes)} changes since {compare}")
                raise typer.Exit(1)
            stdout.print(f"nothing changed since {compare}")


def _show_cell(figures: Figures) -> None:
    psnr = "" if figures.psnr is None else f"{figures.psnr:.1f} dB"
    stderr.print(f"{figures.cell}: {figures.fault or psnr}")


def _print(folder: Path, ledger: Ledger) -> None:
    from tools.ledger.compare import measure_noise
    from tools.ledger.page import list_texts

    table = Table(
        "cell", "PSNR", "worst", "SSIM", "conv. PSNR", "SSIM", "right", "evals", "rows", "s", "GB"
    )
    for figures in ledger.figures:
        table.add_row(figures.cell, *([figures.fault] if figures.fault else list_texts(figures)))
    stdout.print(table)
    for figures in ledger.figures:
        if figures.note:
            stdout.print(f"{figures.cell}: {figures.note}")
    stdout.print(measure_noise(ledger).text)
    stdout.print(f"{folder}/ledger.json and ledger.html")
