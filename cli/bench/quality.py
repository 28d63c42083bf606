"""`hyimage bench quality`: schedulers, steps and step caches against uncached images."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
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
    """Compare schedulers, steps and step caches with uncached images: PSNR, SSIM, evaluations.

    Files are written after every setting: what stops a run costs only the setting it was at.

    Example: hyimage bench quality --num-prompts 4 --no-schedulers --chart quality.png
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
        rows: list[Row] = []
        for row in _measure(settings.worker, texts, guidance, steps, sweep):
            rows.append(row)
            write_rows(rows, csv_file, json_file)
        stdout.print(_table(rows))
        if chart is not None:
            _plot(chart, rows, steps, sweep)


def _measure(
    settings: PipelineSettings, texts: Sequence[str], guidance: float, steps: int, sweep: Sweep
) -> Iterator[Row]:
    """Load the checkpoint and yield a row per setting, with a progress bar."""
    from pipeline.load import load_pipeline
    from tools.bench.images import square_request
    from tools.bench.quality import run_quality_bench
    from tools.progress import megabytes

    with progress_bar() as report:
        pipeline = load_pipeline(settings, megabytes(report, "loading"))
        side = pipeline.transformer.config.image_base_size
        requests = [square_request(side, text, seed, guidance) for seed, text in enumerate(texts)]
        yield from run_quality_bench(pipeline, requests, steps, sweep, report)


def _plot(chart: Path, rows: Sequence[Row], base_steps: int, sweep: Sweep) -> None:
    from tools.bench.quality_charts import plot_quality_chart, plot_scheduler_chart

    plot_quality_chart(chart, rows, base_steps)
    if sweep.schedulers:
        path = chart.with_stem(f"{chart.stem}_schedulers")
        plot_scheduler_chart(path, rows, sweep.truth_steps)


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
        "policy", "value", "scheduler", "steps", "evaluations", "saving", "PSNR", "SSIM",
        "Euler's PSNR", "PSNR to 100", "s",
    )  # fmt: skip
    table = Table(*headings)
    for row in rows:
        table.add_row(
            row.policy,
            "" if row.threshold is None else f"{row.threshold:g}",
            row.scheduler,
            str(row.steps),
            f"{row.evaluations:.1f}",
            f"{row.saving:.2f}x",
            f"{row.psnr:.1f}",
            f"{row.ssim:.3f}",
            "" if row.euler_psnr is None else f"{row.euler_psnr:.1f}",
            f"{row.psnr_100:.1f}",
            f"{row.seconds:.2f}",
        )
    return table
