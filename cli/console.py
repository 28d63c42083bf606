"""Terminal output of all commands: console, error line, progress bar, table, JSON file."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from tools.progress import Report

TABLE_WIDTH = 140  # of a table that goes to a file or a pipe

# No markup: a path may hold [brackets].
stdout = Console(
    highlight=False,
    markup=False,
    emoji=False,
    soft_wrap=True,
    width=None if sys.stdout.isatty() else TABLE_WIDTH,
)
stderr = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def print_error(message: str) -> None:
    """Print one line to stderr that says what is wrong and what would work."""
    stderr.print(Text.assemble(("error", "red"), " ", message))


@contextmanager
def progress_bar() -> Iterator[Report]:
    """Yield a function that shows how far a stage is; every stage gets a line of its own."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )  # fmt: skip
    with Progress(*columns, console=stderr) as progress:
        lines: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in lines:
                lines[stage] = progress.add_task(stage, total=total)
            progress.update(lines[stage], completed=done, total=total)

        yield report


@contextmanager
def spinner(message: str) -> Iterator[None]:
    """Show that something is running which has no stages."""
    with stderr.status(message):
        yield


def write_json(path: Path | None, figures: Any) -> None:
    """Write figures as JSON where --json says; without it nothing is written."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
