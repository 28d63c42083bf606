"""The table, files and charts of `hyimage bench quality`."""

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pipeline.load import load_pipeline
from server.settings import Settings
from tools.bench.images import read_prompts, square_request
from tools.bench.quality import (
    Row,
    count_images,
    list_settings,
    plot_quality_chart,
    plot_scheduler_chart,
    run_quality_bench,
    write_rows,
)


def run_quality(
    settings: Settings,
    *,
    prompts: Path | None,
    count: int,
    guidance: float,
    base_steps: int,
    with_schedulers: bool,
    csv_file: Path | None,
    json_file: Path | None,
    chart: Path | None,
) -> None:
    """Draw, compare, print a row per setting, and write what was asked for.

    Raises:
        ModelError: the checkpoint cannot be loaded.
        CommandError: the prompts cannot be read, or matplotlib is missing.
    """
    texts = read_prompts(prompts, count)
    pipeline = load_pipeline(settings.worker)
    side = pipeline.transformer.config.image_base_size
    requests = [square_request(side, text, seed, guidance) for seed, text in enumerate(texts)]
    measured = list(list_settings(base_steps, with_schedulers))
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        generating = progress.add_task("generating", total=count_images(len(requests), measured))
        rows = run_quality_bench(
            pipeline,
            requests,
            measured,
            base_steps,
            lambda: progress.advance(generating),
            lambda rows: write_rows(rows, csv_file, json_file),
        )
    Console().print(_table(rows))
    if chart is not None:
        plot_quality_chart(chart, rows, base_steps)
        if with_schedulers:
            plot_scheduler_chart(chart.with_stem(f"{chart.stem}_schedulers"), rows)


def _table(rows: list[Row]) -> Table:
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
