"""`hyimage bench load`: a running server under closed and open loops of load."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperCommand

from cli.console import progress_bar, stderr, stdout, write_json
from cli.options import JsonOption, check_output, parse_size, reported_errors
from cli.server_options import KeyOption
from tools.api_client import DEFAULT_URL, open_client

if TYPE_CHECKING:
    from tools.bench.load_plan import Level, LoadPlan
    from tools.bench.load_report import LevelResult, LoadReport, Percentiles
    from tools.bench.load_run import Sample


LOADING_OPTIONS = ("--checkpoint", "--config", "--rounds", "--limit-gb")
CHART_SUFFIXES = (".png", ".webp", ".svg", ".pdf")
LAG_SHARE = 0.1  # of the median latency: a client later than that has shaped the figures


class TransportName(StrEnum):
    """The transports; typer lists the values of an enum, not those of a list of literals."""

    SYNC = "sync"
    ASYNC = "async"
    WEBSOCKET = "websocket"


class LoadCommand(TyperCommand):
    """Names `hyimage bench loading`, which had this name, where its options are given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for name in (word.partition("=")[0] for word in args):
            if name in LOADING_OPTIONS:
                ctx.fail(
                    f"{name} is an option of `hyimage bench loading`, which times loading a "
                    "checkpoint; `hyimage bench load URL` measures a running server"
                )
        return super().parse_args(ctx, args)


def check_chart(path: Path | None) -> Path | None:
    """Return the path of a chart to write; refuse what cannot be one, before any work."""
    if path is not None and path.suffix not in CHART_SUFFIXES:
        raise typer.BadParameter(f"{path} must end in one of {', '.join(CHART_SUFFIXES)}")
    return check_output(path)


def bench_load(
    url: Annotated[
        str, typer.Argument(metavar="URL", help=f"Address of the server, such as {DEFAULT_URL}.")
    ],
    concurrency: Annotated[
        list[int] | None,
        typer.Option(help="Closed loop: tasks always under way; may be repeated.", min=1),
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(help="Open loop: new tasks a second, Poisson; may be repeated."),
    ] = None,
    num_requests: Annotated[int, typer.Option("--requests", help="Of each load.", min=1)] = 50,
    warm_up: Annotated[int, typer.Option(help="Tasks before, not counted.", min=0)] = 2,
    size: Annotated[
        list[str] | None,
        typer.Option(help="WIDTHxHEIGHT; repeated it is a mix, and so are steps and transport."),
    ] = None,
    steps: Annotated[list[int] | None, typer.Option(help="20 if left out.", min=1, max=100)] = None,
    transport: Annotated[
        list[TransportName] | None,
        typer.Option(help="sync if left out; async is polled."),
    ] = None,
    guidance: Annotated[float, typer.Option(help="Guidance scale.", min=1, max=50)] = 7.0,
    prompts: Annotated[
        Path | None, typer.Option(help="One prompt a line; the server's examples if left out.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of mix, arrivals and images.", min=1)] = 1,
    timeout: Annotated[float, typer.Option(help="Seconds until a task is given up.", min=1)] = 600,
    poll_every: Annotated[float, typer.Option(help="Seconds between polls.", min=0.01)] = 0.25,
    queue_wait: Annotated[
        bool, typer.Option(help="Follow each task's events to see when it begins.")
    ] = True,
    json_file: JsonOption = None,
    chart: Annotated[
        Path | None,
        typer.Option(help="Plot latency against load here, as PNG.", callback=check_chart),
    ] = None,
    key: KeyOption = None,
) -> None:
    """Measure a running server under load: latency, queue wait, throughput, errors.

    Latency in an open loop begins when a task was due. Files are written after every load. Loading
    a checkpoint is measured by `hyimage bench loading`.

    Example: hyimage bench load http://127.0.0.1:8000 --rate 0.5 --rate 1 --json load.json
    """
    with reported_errors():
        from tools.bench.load_plan import LoadPlan, Mix, new_levels
        from tools.charts import check_charts

        if chart is not None:
            check_charts()
        levels = new_levels(concurrency or ([] if rate else [1, 2, 4]), rate or [])
        offered, default_size = _ask(url, key)
        plan = LoadPlan(
            mix=Mix(
                prompts=tuple(_read_prompts(prompts) or offered),
                sizes=tuple(map(parse_size, size or [default_size])),
                steps=tuple(steps or (20,)),
                transports=tuple(name.value for name in transport or (TransportName.SYNC,)),
                guidance=guidance,
                seed=seed,
            ),
            levels=levels,
            num_requests=num_requests,
            num_warm_up=warm_up,
            timeout_s=timeout,
            poll_every_s=poll_every,
            has_queue_wait=queue_wait,
        )
        report = _run(url, key, plan, json_file, chart)
        stdout.print(levels_table(report.levels))
        if len(report.levels[0].groups) > 1:
            stdout.print(groups_table(report.levels))
        for warning in warnings_of(report.levels):
            stderr.print(warning)


def _ask(url: str, key: str | None) -> tuple[list[str], str]:
    """Return example prompts of a server, and a size that it generates."""
    from tools.api_client import call

    with open_client(url, key) as client:
        config = call(client, "GET", "/page/config.json")
    sizes = ["{}x{}".format(*size) for size in config["sizes"]]
    default = str(config["defaultSize"])
    return config["examples"], default if default in sizes else sizes[0]


def _read_prompts(path: Path | None) -> list[str]:
    from server.runware.errors import CommandError
    from tools.bench.prompts import read_all_prompts

    if path is None:
        return []
    prompts = read_all_prompts(path)
    if not prompts:
        raise CommandError(f"{path} holds no prompt; write one a line")
    return prompts


def _run(
    url: str, key: str | None, plan: LoadPlan, json_file: Path | None, chart: Path | None
) -> LoadReport:
    """Run all levels with a progress bar; write the files after each."""
    from dataclasses import asdict

    from tools.bench.load_chart import plot_load_chart
    from tools.bench.load_client import LoadClient
    from tools.bench.load_report import new_report, summarize
    from tools.bench.load_run import check_server, run_load

    model, worker = check_server(url, key, plan.mix)
    results: list[LevelResult] = []
    report = new_report(plan, model, worker, results)

    def keep(level: Level, samples: list[Sample]) -> None:
        nonlocal report
        results.append(summarize(level, samples))
        report = new_report(plan, model, worker, results)
        write_json(json_file, asdict(report))
        if chart is not None:
            plot_load_chart(chart, report)

    with progress_bar() as show:
        run_load(lambda: LoadClient(url, key, model, plan), plan, keep, show)
    return report


def levels_table(levels: Sequence[LevelResult]) -> Table:
    """Return a row for each load."""
    table = Table(
        "load", "ok", "p50 s", "p90 s", "p99 s", "wait p50 s", "wait p90 s", "wait p99 s",
        "images/s", "MP/s", "errors",
    )  # fmt: skip
    for result in levels:
        errors = ", ".join(f"{count} {code}" for code, count in result.errors.items())
        table.add_row(
            result.level.name,
            f"{result.num_ok}/{result.num_requests}",
            *_cells(result.latency),
            *_cells(result.queue_wait),
            f"{result.images_per_s:.3f}",
            f"{result.megapixels_per_s:.3f}",
            errors or "none",
        )
    return table


def groups_table(levels: Sequence[LevelResult]) -> Table:
    """Return a row for each size, number of steps and transport of each load."""
    table = Table("load", "transport", "size", "steps", "tasks", "p50 s", "p90 s", "p99 s")
    for result in levels:
        for group in result.groups:
            table.add_row(
                result.level.name,
                group.transport,
                f"{group.width_px}x{group.height_px}",
                str(group.num_steps),
                str(group.num_requests),
                *_cells(group.latency),
            )
    return table


def warnings_of(levels: Sequence[LevelResult]) -> list[str]:
    """Return what makes figures doubtful: a client that could not keep up, too few values."""
    warnings = []
    for result in levels:
        if result.latency is None:
            continue
        if result.kind == "open" and result.send_lag_p99_s > LAG_SHARE * result.latency.p50:
            warnings.append(
                f"{result.level.name}: this client sent up to {result.send_lag_p99_s:.3f} s late; "
                "run it on an idle machine, or fewer requests a second"
            )
        if result.latency.count < 100:
            warnings.append(
                f"{result.level.name}: p99 of {result.latency.count} values is all but the longest"
            )
    return warnings


def _cells(values: Percentiles | None) -> tuple[str, str, str]:
    if values is None:
        return "", "", ""
    return f"{values.p50:.3f}", f"{values.p90:.3f}", f"{values.p99:.3f}"
