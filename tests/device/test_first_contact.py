"""The first contact with a GPU, rehearsed under the pretending CUDA."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.device.pretend_functions import pretended_cuda
from tools.first_contact.parts import PARTS
from tools.first_contact.run import run_first_contact, run_here
from tools.first_contact.settings import FirstContact, Part

GOLDEN = Path(__file__).parents[1] / "golden"


def ignore(part: Part, result: Any) -> None:
    """Show nothing."""


def test_every_part_runs_on_a_device(tmp_path: Path) -> None:
    contact = FirstContact(device="cuda:0", output=tmp_path, recording=GOLDEN, is_quick=True)
    with pretended_cuda() as cuda:
        results = run_first_contact(contact, ignore, run_here)
        assert cuda.record.hazards == []
    assert {
        r.name: (r.error, [x for x in r.rows if not x.get("is_ok", True)]) for r in results
    } == {part.name: ("", []) for part in PARTS}
    by_name = {result.name: result for result in results}
    assert by_name["full"].status == "left out"
    ran = {row["name"] for row in by_name["kernels"].rows if row["error"] is not None}
    assert {"grouped product, float8", "linear layer, float8", "dequantize, int4"} <= ran
    steps = [row for name, result in by_name.items() if name.startswith("step_")
             for row in result.rows if "layers" in row]  # fmt: skip
    assert len(steps) == 10
    assert all(row["counted_s"] > 0 and row["counted_kernels"] > 0 for row in steps)
    page = (tmp_path / "results.html").read_text()
    assert "Rehearsal without a GPU" in page
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert len(json.loads((tmp_path / "results.json").read_text())["parts"]) == len(PARTS)


@pytest.mark.parametrize("part", [part for part in PARTS if part.name == "full"])
def test_the_whole_architecture_is_planned_by_the_free_memory(tmp_path: Path, part: Part) -> None:
    rows: list[dict[str, Any]] = []
    contact = FirstContact(device="cuda:0", output=tmp_path, recording=GOLDEN)
    with pretended_cuda():
        part.run(contact, rows.append)
    assert {row["format"]: row["fits"] for row in rows} == {
        "bfloat16": False, "fp8": False, "int8": False, "int4": True,
    }  # fmt: skip
