"""`hyimage verify`: the implementation against recorded tensors, a line per check."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from cli.console import stdout
from cli.options import RequiredCheckpoint, reported_errors
from model.config_file import load_config
from tools.modes import parse_mode

if TYPE_CHECKING:
    from tools.verify.checks import Check
    from tools.verify.verify import Event, Verified

_HEADER = f"{'tensor':<44} {'shape':<16} {'max error':>10}  {'tolerance':<22} ok"


def verify(
    checkpoint: RequiredCheckpoint,
    recording: Annotated[Path, typer.Argument(help="Folder with manifest.json.")],
    group: Annotated[
        list[str] | None, typer.Option(help="Check only this group or case; may be repeated.")
    ] = None,
    failures_only: Annotated[
        bool, typer.Option("--failures-only", help="Show only the rows that failed.")
    ] = False,
    mode: Annotated[
        str,
        typer.Option(
            help="single, layers2, or several processes: cfg2, tensor2, cfg2xtensor2; with -expert "
            "behind it, experts are held whole."
        ),
    ] = "single",
    device: Annotated[str, typer.Option(help="cpu or cuda; a mode takes a card each.")] = "cpu",
) -> None:
    """Compare this implementation with recorded tensors, in float32; exit 1 on any difference.

    Example: hyimage verify --checkpoint tests/golden/model tests/golden --group vae
    """
    with reported_errors():
        parse_mode(mode)
        load_config(checkpoint)
        from tools.verify.verify import Request, verify_recording

        request = Request(
            checkpoint=checkpoint,
            recording=recording,
            only=frozenset(group or ()),
            mode=mode,
            device=device,
        )
        is_ok = verify_recording(request, PrintEvents(failures_only))
    raise typer.Exit(0 if is_ok else 1)


@dataclass(frozen=True, slots=True)
class PrintEvents:
    """Prints what a verification reports. Picklable: the first rank calls it in its process."""

    failures_only: bool

    def __call__(self, event: Event) -> None:
        from tools.verify.checks import Check
        from tools.verify.verify import GroupDone, GroupSkipped, GroupStarted

        match event:
            case GroupStarted():
                stdout.print(Text(f"\n{event.name}", style="bold"))
                stdout.print(_HEADER)
            case Check():
                if not (self.failures_only and event.is_ok):
                    stdout.print(_line(event))
            case GroupDone():
                stdout.print(
                    f"{event.name}: {event.num_checks} checks, {event.num_failed} failed, "
                    f"{event.seconds:.1f} s"
                )
            case GroupSkipped():
                stdout.print(f"skipped {event.name}: {event.reason}")
            case _:
                stdout.print(_verdict(event))


def _verdict(total: Verified) -> Text:
    verdict = (f"{total.num_failed} FAILED", "red") if total.num_failed else ("all hold", "green")
    return Text.assemble(f"\n{total.num_checks} checks, ", verdict)


def _line(check: Check) -> str:
    error = "" if check.max_error is None else f"{check.max_error:.2e}"
    verdict = "ok" if check.is_ok else "FAILED"
    note = f"  ({check.note})" if check.note else ""
    return f"{check.name:<44} {check.shape:<16} {error:>10}  {check.tolerance:<22} {verdict}{note}"
