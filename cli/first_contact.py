"""`hyimage first-contact`: ten minutes on an unknown GPU machine, and a page to send back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import stdout
from cli.options import reported_errors

if TYPE_CHECKING:
    from tools.first_contact.run import PartResult
    from tools.first_contact.settings import Part


def first_contact(
    device: Annotated[str, typer.Option(help="cuda, cuda:1, ...; cpu is a rehearsal.")] = "cuda",
    output: Annotated[
        Path, typer.Option(help="Folder of the results; named again, it resumes.")
    ] = (Path("first-contact")),
    recording: Annotated[
        Path, typer.Option(help="Folder of the recorded checkpoint, in this repository.")
    ] = Path("tests/golden"),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer layers and repeats.")] = False,
) -> None:
    """Check and measure an unknown GPU machine; a part that fails costs the others nothing.

    results.html in the folder holds everything, to be sent back. Exit 1 if anything failed.

    Example: hyimage first-contact --device cuda --output first-contact
    """
    with reported_errors():
        from tools.first_contact.run import run_first_contact
        from tools.first_contact.settings import FirstContact, check_device

        contact = FirstContact(
            device=check_device(device),
            output=output.absolute(),
            recording=recording.absolute(),
            is_quick=quick,
        )
        results = run_first_contact(contact, _print_part)
    page = output / "results.html"
    if contact.is_rehearsal:
        stdout.print("a rehearsal without a GPU: sizes are small, and no time means anything")
    stdout.print(f"send back {page}")
    raise typer.Exit(0 if all(result.is_ok for result in results) else 1)


def _print_part(part: Part, result: PartResult | None) -> None:
    if result is None:
        stdout.print(f"{part.title}: at most {part.limit_s:.0f} s")
        return
    failed = sum(not row.get("is_ok", True) for row in result.rows)
    note = f", {failed} FAILED" if failed else ""
    rows = f"{len(result.rows)} rows{note}"
    stdout.print(f"{part.title}: {result.status}, {rows}, {result.seconds:.1f} s")
