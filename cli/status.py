"""`hyimage status`: what a running server does, as a table that is drawn anew each second."""

import contextlib
import json
import time
from collections.abc import Callable
from itertools import count
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cli.console import stdout
from cli.options import reported_errors
from cli.server_options import KeyOption, UrlArgument
from server.runware.errors import CommandError
from server.runware.status_answer import DeviceMemory, Speed, Status, TaskState
from tools.api_client import DEFAULT_URL, fetch_status, open_client

MAX_TASKS = 20  # lines of a table that still fits a terminal


def status(
    url: UrlArgument = DEFAULT_URL,
    key: KeyOption = None,
    once: Annotated[bool, typer.Option("--once", help="Print it once and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it once, as JSON.")] = False,
    every_s: Annotated[float, typer.Option("--every", help="Seconds between.", min=0.1)] = 1.0,
) -> None:
    """Show worker, queue, running tasks and speed of a server, anew each second until Ctrl-C.

    Tasks of other keys are counted and not listed. A pipe gets it once.

    Example: hyimage status http://127.0.0.1:8000 --once
    """
    with reported_errors(), open_client(url, key) as client:
        first = fetch_status(client)
        if as_json:
            stdout.print(json.dumps(first, indent=2))
        elif once or not stdout.is_terminal:
            stdout.print(render(first))
        else:
            with Live(render(first), console=stdout, auto_refresh=False) as live:
                watch(
                    lambda: fetch_status(client),
                    lambda shown: live.update(shown, refresh=True),
                    every_s,
                )


def watch(
    fetch: Callable[[], Status],
    show: Callable[[RenderableType], None],
    every_s: float,
    num_times: int | None = None,
) -> None:
    """Show the state again and again until Ctrl-C, or so many times; outlive a server's restart."""
    gone_since: float | None = None
    with contextlib.suppress(KeyboardInterrupt):
        for _ in count() if num_times is None else range(num_times):
            time.sleep(every_s)
            try:
                shown = render(fetch())
            except CommandError as e:
                gone_since = gone_since or time.monotonic()
                shown = Text(f"{e}\n(for {time.monotonic() - gone_since:.0f} s; tried again)")
            else:
                gone_since = None
            show(shown)


def render(state: Status) -> RenderableType:
    """Return the state of a server as lines and tables."""
    parts: list[RenderableType] = [_worker_line(state), _queue_line(state)]
    if state["tasks"]:
        parts.append(_tasks_table(state["tasks"]))
    if state["speeds"]:
        parts.append(_speeds_table(state["speeds"]))
    return Group(*parts)


def _worker_line(state: Status) -> Text:
    worker = state["worker"]
    word, style = ("ready", "green") if worker["ready"] else ("not ready", "red")
    memory = worker["memoryBytes"]
    text = f"  {worker['description']}  ({state['model']}, hyimage {state['version']}"
    text += ")" if memory is None else f", {memory / 2**20:,.0f} MiB resident)"
    text += "".join(f"\n        {_device(device)}" for device in worker["devices"])
    if worker["deaths"]:
        text += f"\n        died {worker['deaths']} times since the server started"
    return Text.assemble(("worker  ", "bold"), (word, style), text)


def _device(device: DeviceMemory) -> str:
    sizes = (device["allocatedBytes"], device["totalBytes"], device["peakBytes"])
    now, total, peak = ("?" if size is None else f"{size / 2**30:.1f}" for size in sizes)
    return f"{device['device']}: {now} of {total} GiB allocated, {peak} at most so far"


def _queue_line(state: Status) -> Text:
    queue = state["queue"]
    text = (
        f"{queue['running']} running, {queue['queued']} waiting, {queue['images']} of at most "
        f"{queue['maxImages']} images; {_left(queue['estimatedSeconds'])} until it is empty"
    )
    if queue["otherKeys"]:
        text += f"; {queue['otherKeys']} of these tasks are of other keys"
    return Text.assemble(("queue   ", "bold"), text)


def _tasks_table(tasks: list[TaskState]) -> Table:
    table = Table("task", "state", "progress", "", "images", "size", "steps", "age", "left")
    for task in tasks[:MAX_TASKS]:
        place = "" if not task["position"] else f" {task['position']}"
        width, height, steps = task["width"], task["height"], task["steps"]
        table.add_row(
            task["taskUUID"],
            f"{task['status']}{place}",
            ProgressBar(total=100, completed=task["progress"], width=20),
            f"{task['progress']} %",
            str(task["images"]),
            "auto" if width is None else f"{width}x{height}",
            "" if steps is None else str(steps),
            f"{task['ageSeconds']:.0f} s",
            _left(task["estimatedSeconds"]),
        )
    if len(tasks) > MAX_TASKS:
        table.caption = f"and {len(tasks) - MAX_TASKS} more; --json has all"
    return table


def _speeds_table(speeds: list[Speed]) -> Table:
    table = Table("megapixels", "guided", "cache", "scheduler", "s/step", "s/prefill", "s/decode")
    for speed in speeds:
        table.add_row(
            f"{speed['megapixels']:.2f}",
            "yes" if speed["guided"] else "no",
            speed["cache"],
            speed["scheduler"],
            *map(
                _seconds,
                (speed["secondsPerStep"], speed["secondsPerPrefill"], speed["secondsPerDecode"]),
            ),
        )
    return table


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _left(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds:.0f} s"
