"""`hyimage bench quality`: solvers, grids, step caches and presets against converged images."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from cli.console import progress_bar, stdout, write_json
from cli.options import (
    CheckpointOption,
    ConfigOption,
    GuidanceOption,
    JsonOption,
    NumPromptsOption,
    check_output,
    read_model_settings,
    reported_errors,
)
from server.runware.errors import CommandError

if TYPE_CHECKING:
    from pipeline.settings import PipelineSettings
    from tools.bench.quality import Row
    from tools.bench.quality_settings import Sweep


def bench_quality(
    prompts: Annotated[
        Path | None, typer.Option(help="One prompt a line; the product's own list if left out.")
    ] = None,
    num_prompts: NumPromptsOption = 20,
    guidance: GuidanceOption = 7.0,
    steps: Annotated[int, typer.Option(help="Base number of steps.", min=4, max=100)] = 30,
    schedulers: Annotated[bool, typer.Option(help="Also measure other solvers than Euler.")] = True,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Measure policies that begin with this; 'none' are plain solvers."),
    ] = None,
    solver_steps: Annotated[
        list[int] | None,
        typer.Option("--solver-steps", help="Measure plain solvers at these steps.", min=4),
    ] = None,
    folder: Annotated[
        Path, typer.Option(help="Where references and finished images' figures are kept.")
    ] = Path("data/quality"),
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write the rows here.", callback=check_output)
    ] = None,
    json_file: JsonOption = None,
    chart: Annotated[
        Path | None,
        typer.Option(help="Plot PSNR against evaluations here.", callback=check_output),
    ] = None,
    config: ConfigOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Compare solvers, grids, caches and presets with converged and uncached images.

    Each converged image, of 100 steps, is generated once and kept. A run that was stopped goes on
    at the image it was at; files are written after every setting.

    Example: hyimage bench quality --num-prompts 4 --only none --only preset --chart quality.png
    """
    with reported_errors():
        settings = read_model_settings(config, checkpoint)
        from tools.bench.prompts import read_prompts
        from tools.bench.quality_settings import Sweep
        from tools.charts import check_charts

        if chart is not None:
            check_charts()
        texts = read_prompts(prompts, num_prompts)
        sweep = Sweep() if schedulers else replace(Sweep(), schedulers=())
        if solver_steps:
            counts = tuple(solver_steps)
            sweep = replace(sweep, euler_steps=counts, scheduler_steps=counts, fitted_steps=counts)
        run = _Run(texts, guidance, steps, sweep, folder, tuple(only or ()))
        rows: list[Row] = []
        for row in _measure(settings.worker, run):
            rows.append(row)
            write_rows(rows, csv_file, json_file)
        if not rows:
            raise CommandError(f"no policy begins with {', '.join(only or ())}")
        stdout.print(_table(rows))
        if chart is not None:
            from tools.bench.quality_charts import plot_quality_chart

            plot_quality_chart(chart, rows, steps)


@dataclass(frozen=True, slots=True)
class _Run:
    texts: Sequence[str]
    guidance: float
    steps: int
    sweep: Sweep
    folder: Path
    only: tuple[str, ...]


def _measure(settings: PipelineSettings, run: _Run) -> Iterator[Row]:
    """Load the checkpoint and yield a row per setting, with a progress bar."""
    from pipeline.load import load_pipeline
    from tools.bench.images import square_request
    from tools.bench.quality import run_quality_bench
    from tools.bench.quality_store import Store
    from tools.progress import megabytes

    with progress_bar() as report:
        pipeline = load_pipeline(settings, megabytes(report, "loading"))
        side = pipeline.transformer.config.image_base_size
        requests = [
            square_request(side, text, seed, run.guidance) for seed, text in enumerate(run.texts)
        ]
        store = Store(run.folder, pipeline, Path(settings.checkpoint))
        yield from run_quality_bench(
            pipeline, requests, run.steps, run.sweep, store, run.only, report
        )


def write_rows(rows: Sequence[Row], csv_file: Path | None, json_file: Path | None) -> None:
    """Write the rows as CSV, JSON, or both."""
    rounded = [
        {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(row).items()}
        for row in rows
    ]
    write_json(json_file, rounded)
    if csv_file is not None:
        with csv_file.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rounded[0]))
            writer.writeheader()
            writer.writerows(rounded)


def _table(rows: Sequence[Row]) -> Table:
    headings = (
        "policy", "value", "scheduler", "steps", "evaluations", "rows", "PSNR", "worst", "SSIM",
        "to uncached", "best solver", "its PSNR", "its worst", "s",
    )  # fmt: skip
    table = Table(*headings)
    for row in rows:
        table.add_row(
            row.policy,
            "" if row.threshold is None else f"{row.threshold:g}",
            row.scheduler,
            str(row.steps),
            f"{row.evaluations:.1f}",
            f"{row.rows:.1f}",
            f"{row.psnr:.1f}",
            f"{row.psnr_min:.1f}",
            f"{row.ssim:.4f}",
            f"{row.base_psnr:.1f}",
            row.solver or "",
            "" if row.solver_psnr is None else f"{row.solver_psnr:.1f}",
            "" if row.solver_psnr_min is None else f"{row.solver_psnr_min:.1f}",
            f"{row.seconds:.2f}",
        )
    return table
