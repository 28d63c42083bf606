"""`hyimage bench serve`: everything but generation, beside a bare FastAPI route."""

from dataclasses import asdict
from typing import Annotated

import typer

from cli.console import spinner, stdout, write_json
from cli.options import (
    CheckpointOption,
    ConfigOption,
    JsonOption,
    read_settings,
    reported_errors,
)


def bench_serve(
    num_requests: Annotated[
        int, typer.Option("--requests", help="Requests to send.", min=10)
    ] = 500,
    concurrency: Annotated[int, typer.Option(help="Requests under way.", min=1)] = 16,
    json_file: JsonOption = None,
    config: ConfigOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Time everything but generation, beside a bare FastAPI route that validates the same body.

    Example: hyimage bench serve --requests 200 --concurrency 8
    """
    with reported_errors():
        settings = read_settings(config, checkpoint)
        from tools.bench.serve import run_serve_bench

        with spinner(f"3 rounds of {num_requests} requests to two servers"):
            result = run_serve_bench(settings, num_requests, concurrency)
        stdout.print(
            f"one request   {result.ours_ms:8.2f} ms   bare route {result.bare_ms:8.2f} ms\n"
            f"many at once  {result.ours_per_s:8.0f} /s   bare route {result.bare_per_s:8.0f} /s\n"
            f"ratio         {result.ratio:8.2f}"
        )
        write_json(json_file, asdict(result))
