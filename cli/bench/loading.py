"""`hyimage bench loading`: loading beside bare reads, and generation within a memory limit."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import progress_bar, spinner, stdout, write_json
from cli.options import (
    CheckpointOption,
    ConfigOption,
    JsonOption,
    read_model_settings,
    reported_errors,
)

if TYPE_CHECKING:
    from tools.bench.loading import LimitedResult, LoadingResult


def bench_loading(
    rounds: Annotated[int, typer.Option(help="Loads, each beside a bare read.", min=1)] = 3,
    limit_gb: Annotated[
        float | None, typer.Option(help="Also generate with no more memory than this.", min=0.1)
    ] = None,
    steps: Annotated[int, typer.Option(help="Of that image.", min=1)] = 2,
    json_file: JsonOption = None,
    config: ConfigOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Time loading a checkpoint beside bare reads of its files, and measure the memory it takes.

    With --limit-gb the settings worker.device_memory_gb and worker.offload are tested.

    Example: hyimage bench loading --checkpoint checkpoints/tiny --limit-gb 1.3
    """
    with reported_errors():
        worker = read_model_settings(config, checkpoint).worker
        from tools.bench.loading import run_limited, run_loading_bench

        with progress_bar() as report:
            unlimited = worker.model_copy(update={"device_memory_gb": 0.0})
            result = run_loading_bench(unlimited, rounds, report)
        figures = {"LoadingResult": asdict(result)}
        _print_loading(result)
        if limit_gb is not None:
            with spinner(f"generating {steps} steps within {limit_gb} GB"):
                limited = run_limited(worker, int(limit_gb * 1e9), steps)
            figures["LimitedResult"] = asdict(limited)
            _print_limited(limited)
        write_json(json_file, figures)


def _print_loading(result: LoadingResult) -> None:
    gb = result.file_bytes / 1e9
    stdout.print(
        f"bare reads  {gb / result.bare_s:7.2f} GB/s  ({gb:.2f} GB in {result.bare_s:.2f} s)\n"
        f"loading     {gb / result.load_s:7.2f} GB/s  ({result.load_s:.2f} s)\n"
        f"ratio       {result.ratio:7.2f}       (1 = as fast as the files can be read)\n"
        f"parameters  {result.parameter_bytes / 1e9:7.2f} GB\n"
        f"peak        {result.peak_bytes / 1e9:7.2f} GB    of the process, beyond its start"
    )


def _print_limited(limited: LimitedResult) -> None:
    stdout.print(
        f"within {limited.limit_bytes / 1e9:g} GB: loaded in {limited.load_s:.1f} s, "
        f"{limited.step_s:.1f} s a step, "
        f"{limited.peak_bytes / 1e9:.2f} GB resident at most (with libraries)"
    )
