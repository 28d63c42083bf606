"""`hyimage prove`: a server's images, from outside, against a recorded set of images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cli.console import progress_bar, stdout, write_json
from cli.options import (
    GuidanceOption,
    JsonOption,
    NumPromptsOption,
    StepsOption,
    parse_size,
    reported_errors,
)
from cli.server_options import KeyOption
from server.runware.errors import CommandError
from tools.api_client import open_client

if TYPE_CHECKING:
    import httpx

    from tools.prove import Task, Verdict

# Rounding in bfloat16 keeps 47 dB to float32, and half of the steps 36 (docs/sampling.md).
DEFAULT_MIN_PSNR = 40.0
SHOWN_LETTERS = 48  # of a prompt


def prove(
    url: Annotated[str, typer.Argument(metavar="URL", help="Address of the server to judge.")],
    recording: Annotated[
        Path | None, typer.Argument(metavar="[RECORDING]", help="Folder of a recording.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="Make a recording of the server in this folder instead.")
    ] = None,
    num_prompts: NumPromptsOption = 4,
    prompts: Annotated[Path | None, typer.Option(help="Your own prompts, one a line.")] = None,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT of the recorded images.")] = "1024x1024",
    steps: StepsOption = 20,
    guidance: GuidanceOption = 7.0,
    model: Annotated[str, typer.Option(help="The model that tasks name.")] = "runware:180@1",
    parameters: Annotated[
        str | None,
        typer.Option(help='More of every task, as JSON: \'{"acceleration": "none"}\'.'),
    ] = None,
    min_psnr: Annotated[
        float, typer.Option(help="From how many dB on an image is the same.", min=10, max=99)
    ] = DEFAULT_MIN_PSNR,
    key: KeyOption = None,
    json_file: JsonOption = None,
) -> None:
    """Judge a server, this one or another that speaks imageInference, by recorded images.

    It generates the recording's prompts from their seeds again, over its API. Exits with 0 if every
    image is equal or the same, 1 if one is different, 2 on errors.

    Example: hyimage prove http://127.0.0.1:8000 recordings/tiny --json verdict.json
    """
    with reported_errors():
        if (recording is None) == (record is None):
            raise CommandError("name either the folder of a RECORDING, or one to --record into")
        with open_client(url, key) as client:
            if record is not None:
                tasks = _build_tasks(
                    (prompts, num_prompts), model, parse_size(size), steps, guidance, parameters
                )
                _record(client, tasks, record)
                return
            assert recording is not None
            verdicts = _judge(client, recording, min_psnr)
        write_json(json_file, [asdict(verdict) for verdict in verdicts])
    if any(verdict.judgement == "different" for verdict in verdicts):
        raise typer.Exit(1)


def _build_tasks(
    prompts: tuple[Path | None, int],
    model: str,
    size_px: tuple[int, int],
    steps: int,
    guidance: float,
    parameters: str | None,
) -> list[Task]:
    from tools.bench.prompts import read_prompts
    from tools.prove import build_tasks

    more: Any = {}
    if parameters is not None:
        try:
            more = json.loads(parameters)
        except ValueError as e:
            raise CommandError(f"--parameters {parameters!r} is not JSON: {e}") from None
    if not isinstance(more, dict):
        raise CommandError(f"--parameters {parameters!r} is no object")
    return build_tasks(read_prompts(*prompts), model, size_px, steps, guidance, more)


def _record(client: httpx.Client, tasks: Sequence[Task], folder: Path) -> None:
    from tools.prove import record_server

    with progress_bar() as report:
        record_server(client, tasks, folder, report)
    stdout.print(f"{folder}: {len(tasks)} images of {client.base_url}")


def _judge(client: httpx.Client, folder: Path, min_psnr: float) -> list[Verdict]:
    from tools.prove import judge_server, load_recording

    recording = load_recording(folder)
    with progress_bar() as report:
        verdicts = list(judge_server(client, recording, min_psnr, report))
    table = Table("prompt", "seed", "verdict", "PSNR, dB", "SSIM")
    for each in verdicts:
        table.add_row(
            each.prompt[:SHOWN_LETTERS],
            str(each.seed),
            each.judgement,
            each.note if each.psnr is None else f"{each.psnr:.1f}",
            "" if each.ssim is None else f"{each.ssim:.4f}",
        )
    stdout.print(table)
    num_right = sum(each.judgement != "different" for each in verdicts)
    stdout.print(f"{num_right} of {len(verdicts)} images are those of {recording.server}")
    return verdicts
