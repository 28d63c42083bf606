"""The table of `hyimage bench adherence`."""

from itertools import product
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.load import load_pipeline
from server.settings import Settings
from tools.bench.adherence import (
    Row,
    score_setting,
    share_found_in_prose,
    share_of_negated_colour,
    share_of_right_shapes,
    write_json,
)
from training.art import fetch_art

ART_FOLDER = Path("~/.cache/hyimage-training/art")
NUM_AUTO_CAPTIONS = 100
NUM_LONG = 40


def run_adherence(
    settings: Settings,
    *,
    count: int,
    guidances: tuple[float, ...],
    step_counts: tuple[int, ...],
    has_negative: bool,
    has_auto: bool,
    has_long: bool,
    sheet: Path | None,
    json_file: Path | None,
) -> None:
    """Draw, score, print a row per setting, and write what was asked for.

    Raises:
        ModelError: the checkpoint cannot be loaded.
        RuntimeError: the artwork cannot be fetched.
    """
    console = Console(highlight=False)
    art = ART_FOLDER.expanduser()
    fetch_art(art)
    pipeline = load_pipeline(settings.worker)
    rows: list[Row] = []
    extra: dict[str, object] = {}
    for guidance, steps in product(guidances, step_counts):
        with console.status(f"{count} captions at CFG {guidance:g}, {steps} steps"):
            first_sheet = None if rows else sheet
            rows.append(score_setting(pipeline, art, guidance, steps, count, first_sheet))
        console.print(_line(rows[-1]))
    if has_negative:
        with console.status("negative prompt"):
            extra["negative"] = share_of_negated_colour(
                pipeline, art, guidances[0], step_counts[0], count
            )
        console.print(f"share of red, without and with it negated: {extra['negative']}")
    if has_long:
        with console.status(f"{NUM_LONG} prompts of 2,000 characters"):
            long_sheet = None if sheet is None else sheet.with_stem(f"{sheet.stem}_long")
            extra["long"] = share_found_in_prose(
                pipeline, art, guidances[0], step_counts[0], NUM_LONG, long_sheet
            )
        console.print(f"known thing in the middle of {NUM_LONG} long prompts: {extra['long']:.0%}")
    if has_auto:
        extra["auto"] = share_of_right_shapes(pipeline, NUM_AUTO_CAPTIONS)
        console.print(f"size `auto` right, of {NUM_AUTO_CAPTIONS} captions: {extra['auto']}")
    console.print(_table(rows))
    if json_file is not None:
        write_json(json_file, rows, extra)


def _line(row: Row) -> str:
    return f"CFG {row.guidance:g}, {row.steps} steps: all right {row.all:.0%}, {row.seconds:.2f} s"


def _table(rows: list[Row]) -> Table:
    table = Table("CFG", "steps", "images", "background", "position", "colour", "kind", "all", "s")
    for row in rows:
        shares = (row.background, row.position, row.colour, row.kind, row.all)
        table.add_row(
            f"{row.guidance:g}",
            str(row.steps),
            str(row.count),
            *(f"{share:.0%}" for share in shares),
            f"{row.seconds:.2f}",
        )
    return table
