"""Parts of a first contact cannot harm one another; a second run resumes."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cli.app import app
from model.errors import ConfigError
from tools.first_contact.kernels import check_kernels, fused_arguments, fused_kernels
from tools.first_contact.parts import PARTS, guarded
from tools.first_contact.report import build_page
from tools.first_contact.run import (
    PartResult,
    read_result,
    run_first_contact,
    run_here,
    run_in_process,
)
from tools.first_contact.settings import AddRow, FirstContact, Part, Row, check_device

GOLDEN = Path(__file__).parents[3] / "golden"


@pytest.fixture
def contact(tmp_path: Path) -> FirstContact:
    (tmp_path / "parts").mkdir()
    return FirstContact(device="cpu", output=tmp_path, recording=GOLDEN)


def ignore(part: Part, result: PartResult | None) -> None:
    """Show nothing."""


def break_down(contact: FirstContact, add: AddRow) -> None:
    add({"first": 1})
    raise RuntimeError("out of luck")


def test_a_part_that_raises_keeps_its_rows_and_says_why(contact: FirstContact) -> None:
    part = Part("broken", "Broken", 5, break_down)
    run_here(contact, part)
    result = read_result(contact, part)
    assert result is not None
    assert (result.status, result.rows, result.is_ok) == ("failed", [{"first": 1}], False)
    assert "out of luck" in result.error


def test_a_part_that_takes_too_long_is_ended(contact: FirstContact) -> None:
    machine = replace(PARTS[0], limit_s=0.01)
    run_in_process(contact, machine)
    result = read_result(contact, machine)
    assert result is not None
    assert result.status == "timed out"


def test_a_part_runs_in_a_process_of_its_own(contact: FirstContact) -> None:
    run_in_process(contact, PARTS[0])
    result = read_result(contact, PARTS[0])
    assert result is not None
    assert result.is_ok, result.error
    assert any(row["fact"] == "torch" for row in result.rows)
    assert sys.version.split()[0] in {row["value"] for row in result.rows}


def test_a_second_run_repeats_only_what_failed(contact: FirstContact) -> None:
    ran: list[str] = []

    def run_part(contact: FirstContact, part: Part) -> None:
        is_first = part.name not in ran
        ran.append(part.name)
        works = part.name != "vae" or not is_first

        def run(_: FirstContact, add: AddRow) -> None:
            add({"is_ok": works})

        run_here(contact, replace(part, run=run))

    first = run_first_contact(contact, ignore, run_part)
    assert [r.name for r in first if not r.is_ok] == ["vae"]
    second = run_first_contact(contact, ignore, run_part)
    assert all(r.is_ok for r in second)
    assert ran == [*(part.name for part in PARTS), "vae"]
    quick = replace(contact, is_quick=True)
    assert read_result(quick, PARTS[0]) is None


def test_a_row_that_cannot_be_measured_leaves_the_others() -> None:
    rows: list[Row] = []

    def fail() -> Row:
        raise MemoryError("too little")

    guarded(rows.append, {"layers": 4}, fail)
    guarded(rows.append, {"layers": 1}, lambda: {"seconds": 1.0})
    assert [row.get("is_ok", True) for row in rows] == [False, True]
    assert rows[0]["note"] == "MemoryError: too little"


def test_every_fused_kernel_has_arguments_and_is_checked() -> None:
    assert fused_arguments(torch.float32).keys() == fused_kernels().keys()
    names = {check.name for check in check_kernels(torch.device("cpu")) if check.is_ok}
    assert {f"fused {name}, bfloat16" for name in fused_kernels()} <= names


def test_the_page_escapes_what_a_machine_reports() -> None:
    row = {"fact": "<b>name</b>", "value": 1.5}
    part = {"name": "machine", "title": "The machine", "status": "failed", "seconds": 1.0,
            "error": "<i>", "is_ok": False, "rows": [row]}  # fmt: skip
    page = build_page({"device": "cuda:0", "is_quick": False, "is_rehearsal": False,
                       "parts": [part]})  # fmt: skip
    assert "<b>name" not in page
    assert "&lt;b&gt;name" in page
    assert "Rehearsal" not in page


def test_a_device_that_is_not_there_is_refused_with_what_there_is() -> None:
    assert check_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="--device cpu runs a rehearsal"):
        check_device("cuda:99")


def test_the_command_refuses_a_folder_without_recordings(tmp_path: Path) -> None:
    arguments = ["--device", "cpu", "--recording", str(tmp_path), "--output", str(tmp_path / "x")]
    result = CliRunner().invoke(app, ["first-contact", *arguments])
    assert result.exit_code == 2
    assert "tests/golden" in " ".join(result.output.split())


def test_results_are_valid_json_after_every_part(contact: FirstContact) -> None:
    seen: list[int] = []

    def report(part: Part, result: PartResult | None) -> None:
        path = contact.output / "results.json"
        seen.append(len(json.loads(path.read_text())["parts"]) if path.exists() else 0)

    def run_part(contact: FirstContact, part: Part) -> None:
        run_here(contact, replace(part, run=break_down))

    run_first_contact(contact, report, run_part)
    assert max(seen) == len(PARTS) - 1
