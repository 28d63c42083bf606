"""The file ledger.json: figures by cell, one line each, replaced as a whole after every cell."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from server.runware.errors import CommandError

FILE_NAME = "ledger.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What one cell came to: medians and worst images, means of what was computed.

    PSNR in dB, 99 for equal images. `psnr` and `ssim` are to the reference, float32 without a
    cache, `psnr_converged` and `ssim_converged` to the converged run. `adherence` is the share of
    captions that came out right, None where nothing scores them. `seconds` is the median of an
    image, `seconds_spread` half the distance of the quartiles, in shares of it. `note` holds the
    warnings of the images' diagnostics; `fault` says why a cell has no figures.
    """

    cell: str
    axis: str
    psnr: float | None = None
    least_psnr: float | None = None
    ssim: float | None = None
    psnr_converged: float | None = None
    ssim_converged: float | None = None
    adherence: float | None = None
    evaluations: float | None = None
    rows: float | None = None
    seconds: float | None = None
    seconds_spread: float | None = None
    peak_bytes: int | None = None
    note: str = ""
    fault: str = ""

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Return the figures of a line of the file.

        Raises:
            ValueError: it has other fields.
        """
        names = {field.name for field in fields(cls)}
        if set(raw) != names:
            raise ValueError(f"a cell's fields are {sorted(raw)}, not {sorted(names)}")
        return cls(**raw)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What the cells of a ledger have in common; figures of another setup are not theirs."""

    weights: str  # fingerprint
    prompts: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]  # width and height in pixels, of each prompt
    steps: int
    guidance: float
    machine: str


@dataclass(frozen=True, slots=True)
class Ledger:
    """A setup and the figures of the cells that are done."""

    setup: Setup
    figures: tuple[Figures, ...] = ()

    def with_figures(self, figures: Figures) -> "Ledger":
        """Return the same with one more cell."""
        return replace(self, figures=(*self.figures, figures))

    @property
    def done(self) -> set[str]:
        return {each.cell for each in self.figures}


def save_ledger(path: Path, ledger: Ledger) -> None:
    """Write a ledger, one line for each cell; a kill leaves the old file or the new one."""
    lines = [json.dumps(asdict(each)) for each in ledger.figures]
    setup = json.dumps(asdict(ledger.setup))
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(
        f'{{"setup": {setup},\n"cells": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8"
    )
    partial.replace(path)


def load_ledger(path: Path) -> Ledger:
    """Return the ledger of a file.

    Raises:
        CommandError: it cannot be read, or is no ledger of this version.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        setup = Setup(
            **{
                **raw["setup"],
                "prompts": tuple(raw["setup"]["prompts"]),
                "sizes": tuple((int(w), int(h)) for w, h in raw["setup"]["sizes"]),
            }
        )
        return Ledger(setup, tuple(Figures.from_dict(line) for line in raw["cells"]))
    except OSError as e:
        raise CommandError(f"{path} cannot be read: {e.strerror}") from None
    except (ValueError, TypeError, KeyError) as e:
        raise CommandError(
            f"{path} is no ledger of this version ({e}); measure a new one with `hyimage ledger`"
        ) from None


def resume_ledger(path: Path, setup: Setup) -> Ledger:
    """Return the ledger to go on with: the one in the file, or a new one.

    Raises:
        CommandError: the file holds another setup's; the message names what differs.
    """
    if not path.exists():
        return Ledger(setup)
    ledger = load_ledger(path)
    if ledger.setup != setup:
        differing = ", ".join(list_differences(ledger.setup, setup))
        raise CommandError(
            f"{path} was measured with other {differing}; name another folder, or the options "
            "that it was measured with"
        )
    return ledger


def list_differences(ours: Setup, theirs: Setup) -> list[str]:
    """Return the names of what differs between two setups."""
    return [
        field.name
        for field in fields(Setup)
        if getattr(ours, field.name) != getattr(theirs, field.name)
    ]


def find_figures(figures: Iterable[Figures], axis: str) -> Figures | None:
    """Return the first cell of an axis."""
    return next((each for each in figures if each.axis == axis), None)


def measured(figures: Sequence[Figures]) -> list[Figures]:
    """Return the cells that came to figures."""
    return [each for each in figures if not each.fault]
