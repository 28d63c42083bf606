"""The table of `hyimage verify`."""

import time
from pathlib import Path

from rich.console import Console

from server.settings import WorkerSettings
from server.verify.checks import Check
from server.verify.recording import Recording
from server.verify.run import Group, list_groups
from server.worker.parts import build_parts

_HEADER = f"{'tensor':<44} {'shape':<16} {'max error':>10}  {'tolerance':<22} ok"


def verify_recording(
    checkpoint: Path, recording: Path, only: set[str], failures_only: bool
) -> bool:
    """Print a row for every check and a summary; return whether all of them hold.

    Raises:
        ModelError: the checkpoint or the recording cannot be read.
    """
    console = Console(highlight=False, soft_wrap=True)
    source = Recording(recording)
    settings = WorkerSettings(checkpoint=str(checkpoint))
    parts = build_parts(settings, skip=())
    groups = list(list_groups(parts, source, only))
    if unknown := only - {group.name for group in groups}:
        known = ", ".join(group.name for group in groups)
        console.print(f"[red]no group {', '.join(sorted(unknown))}; there are: {known}[/red]")
        return False
    counts = [_print_group(console, group, failures_only) for group in groups]
    num_checks, num_failed = (sum(column) for column in zip(*counts, strict=True))
    verdict = "[green]all hold[/green]" if not num_failed else f"[red]{num_failed} FAILED[/red]"
    console.print(f"\n{num_checks} checks, {verdict}")
    for group in groups:
        if group.skipped:
            console.print(f"skipped {group.name}: {group.skipped}")
    return num_checks > 0 and not num_failed


def _print_group(console: Console, group: Group, failures_only: bool) -> tuple[int, int]:
    if group.skipped:
        return 0, 0
    started = time.monotonic()
    rows: list[Check] = []
    console.print(f"\n[bold]{group.name}[/bold]\n{_HEADER}")
    for check in group.checks:
        rows.append(check)
        if not (failures_only and check.is_ok):
            console.print(_line(check), markup=False)
    num_failed = sum(not row.is_ok for row in rows)
    elapsed_s = time.monotonic() - started
    console.print(f"{group.name}: {len(rows)} checks, {num_failed} failed, {elapsed_s:.1f} s")
    return len(rows), num_failed


def _line(check: Check) -> str:
    error = "" if check.max_error is None else f"{check.max_error:.2e}"
    verdict = "ok" if check.is_ok else "FAILED"
    note = f"  ({check.note})" if check.note else ""
    return f"{check.name:<44} {check.shape:<16} {error:>10}  {check.tolerance:<22} {verdict}{note}"
