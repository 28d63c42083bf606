"""Input images: our preparation and generation equal the recorded Instruct release."""

from pathlib import Path

import pytest

from pipeline.load import Pipeline
from tools.verify.checks import Check
from tools.verify.recording import Recording
from tools.verify.run import list_groups

EDIT = Path(__file__).parent / "edit"


def run_group(pipeline: Pipeline, name: str) -> list[Check]:
    groups = list_groups(pipeline, Recording(EDIT), {name})
    return [check for group in groups if not group.skipped for check in group.checks]


@pytest.mark.parametrize("name", ["edit_sizes", "edit_pictures"])
def test_every_recorded_fact_of_a_group_is_reproduced(golden_pipeline: Pipeline, name: str) -> None:
    checks = run_group(golden_pipeline, name)
    assert [check for check in checks if not check.is_ok] == []
    assert len(checks) >= 20
