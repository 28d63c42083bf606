"""`hyimage bench compare`: two load runs, and what changed beyond chance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from cli.console import stdout
from cli.options import reported_errors

if TYPE_CHECKING:
    from tools.bench.compare import Change

_STYLES = {"better": "green", "worse": "red", "same": "", "unclear": "yellow"}


def bench_compare(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="Of `hyimage bench load`.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="Another run of the same load.")],
    threshold: Annotated[
        float, typer.Option(help="Percent by which a figure may be worse.", min=0)
    ] = 5.0,
) -> None:
    """Compare two runs of `hyimage bench load`. Exits with 1 if the second is worse, 2 on errors.

    Worse is a figure beyond the threshold whose 99 % interval leaves out 0.

    Example: hyimage bench compare before.json after.json --threshold 10
    """
    with reported_errors():
        from tools.bench.compare import compare_runs
        from tools.bench.load_report import read_report

        comparison = compare_runs(read_report(before), read_report(after), threshold)
        stdout.print(_table(comparison.changes))
        if comparison.unmatched:
            stdout.print(f"in one of them only: {', '.join(comparison.unmatched)}")
        num_worse = sum(change.is_beyond for change in comparison.changes)
        stdout.print(
            f"{num_worse} of {len(comparison.changes)} figures are worse by more than {threshold:g}"
        )
    if comparison.is_worse:
        raise typer.Exit(1)


def _table(changes: list[Change]) -> Table:
    table = Table("load", "figure", "A", "B", "change, %", "99 % interval", "")
    for change in changes:
        table.add_row(
            change.level,
            change.figure,
            f"{change.before:.3f}",
            f"{change.after:.3f}",
            f"{change.percent:+.1f}",
            f"{change.low:+.1f} to {change.high:+.1f}",
            Text(change.verdict, _STYLES[change.verdict]),
        )
    return table
