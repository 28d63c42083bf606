"""The parts one after the other, each in a process of its own, within its time, resumable.

A part that fails, hangs or breaks its CUDA context costs the others nothing. Its rows are on disk
as they come, and a second run repeats only the parts that did not end well.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from model.errors import ConfigError
from tools.first_contact.parts import PARTS
from tools.first_contact.report import build_page
from tools.first_contact.settings import FirstContact, Part, Row

LOG_CHARACTERS = 2000


@dataclass(slots=True)
class PartResult:
    """What a part has found so far. `status`: running, done, failed, timed out, left out."""

    name: str
    title: str
    status: str = "running"
    seconds: float = 0.0
    error: str = ""
    rows: list[Row] = field(default_factory=list)
    device: str = ""
    is_quick: bool = False

    @property
    def is_ok(self) -> bool:
        """Whether the part ran to its end, if it was to run, and no row of it failed."""
        return self.status in ("done", "left out") and all(r.get("is_ok", True) for r in self.rows)


RunPart = Callable[[FirstContact, Part], None]
ReportPart = Callable[[Part, PartResult | None], None]  # None: it starts now


def run_first_contact(
    contact: FirstContact, report: ReportPart, run_part: RunPart | None = None
) -> list[PartResult]:
    """Run the parts that have not ended well yet; write results.json and results.html after each.

    Raises:
        ConfigError: the folder of the recordings is not one.
    """
    if not (contact.recording / "manifest.json").is_file():
        raise ConfigError(
            f"{contact.recording} holds no recordings; --recording names the folder tests/golden "
            "of this repository"
        )
    run_part = run_part or run_in_process
    (contact.output / "parts").mkdir(parents=True, exist_ok=True)
    results: list[PartResult] = []
    for part in PARTS:
        before = read_result(contact, part)
        if before is None or not before.is_ok:
            report(part, None)
            _run(contact, part, run_part)
        result = read_result(contact, part) or PartResult(part.name, part.title, "failed")
        report(part, result)
        results.append(result)
        write_results(contact, results)
    return results


def _run(contact: FirstContact, part: Part, run_part: RunPart) -> None:
    if part.is_long and contact.is_quick:
        left_out = _new_result(contact, part)
        left_out.status = "left out"
        _write(contact, left_out)
        return
    run_part(contact, part)


def run_here(contact: FirstContact, part: Part) -> None:
    """Run a part in this process and write its rows as they come."""
    result = _new_result(contact, part)
    started = time.monotonic()

    def add(row: Row) -> None:
        result.rows.append(row)
        result.seconds = time.monotonic() - started
        _write(contact, result)

    _write(contact, result)
    try:
        part.run(contact, add)
        result.status = "done"
    except Exception:  # noqa: BLE001 -- whatever it is, it is the part's result
        result.status, result.error = "failed", traceback.format_exc()[-LOG_CHARACTERS:]
    result.seconds = time.monotonic() - started
    _write(contact, result)


def run_in_process(contact: FirstContact, part: Part) -> None:
    """Run a part in a new process; end that and its children when its time is over."""
    _write(contact, _new_result(contact, part))
    log = contact.output / "parts" / f"{part.name}.log"
    command = [sys.executable, "-m", "tools.first_contact.run", part.name, _to_json(contact)]
    started = time.monotonic()
    problem = ""
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        try:
            process.wait(part.limit_s)
        except subprocess.TimeoutExpired:
            problem = "timed out"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    result = read_result(contact, part) or _new_result(contact, part)
    if result.status == "running":
        result.status = problem or "failed"
        ended = f"over {part.limit_s:.0f} s" if problem else f"exit status {process.returncode}"
        result.error = f"{ended}\n{log.read_text(errors='replace')[-LOG_CHARACTERS:]}"
        result.seconds = time.monotonic() - started
        _write(contact, result)


def read_result(contact: FirstContact, part: Part) -> PartResult | None:
    """Return what a part has left in the folder, if it ran with the same options."""
    path = contact.output / "parts" / f"{part.name}.json"
    try:
        result = PartResult(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    same = (result.device, result.is_quick) == (contact.device, contact.is_quick)
    return result if same else None


def write_results(contact: FirstContact, results: list[PartResult]) -> None:
    """Write what there is so far, for machines and for people."""
    values: dict[str, Any] = {
        "device": contact.device,
        "is_quick": contact.is_quick,
        "is_rehearsal": contact.is_rehearsal,
        "parts": [{**asdict(result), "is_ok": result.is_ok} for result in results],
    }
    _replace(contact.output / "results.json", json.dumps(values, indent=1) + "\n")
    _replace(contact.output / "results.html", build_page(values))


def _new_result(contact: FirstContact, part: Part) -> PartResult:
    return PartResult(part.name, part.title, device=contact.device, is_quick=contact.is_quick)


def _write(contact: FirstContact, result: PartResult) -> None:
    path = contact.output / "parts" / f"{result.name}.json"
    _replace(path, json.dumps(asdict(result), default=str))


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _to_json(contact: FirstContact) -> str:
    return json.dumps(asdict(contact), default=str)


def _from_json(text: str) -> FirstContact:
    fields = json.loads(text)
    folders = {name: Path(fields[name]) for name in ("output", "recording")}
    return FirstContact(**{**fields, **folders})


if __name__ == "__main__":
    _name, _settings = sys.argv[1:]
    run_here(_from_json(_settings), next(part for part in PARTS if part.name == _name))
