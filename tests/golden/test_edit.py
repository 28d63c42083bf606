"""Input images: our preparation and generation equal the recorded Instruct release."""

from pathlib import Path

import pytest

from pipeline.load import Pipeline
from tools.verify.checks import Check
from tools.verify.recording import Recording
from tools.verify.run import group_names, list_groups
from tools.verify.verify import Request, verify_recording

EDIT = Path(__file__).parent / "edit"


def run_group(pipeline: Pipeline, name: str) -> list[Check]:
    groups = list_groups(pipeline, Recording(EDIT), {name})
    return [check for group in groups if not group.skipped for check in group.checks]


@pytest.mark.parametrize(
    "name",
    [
        "edit_sizes", "edit_pictures", "edit_tokens", "edit_text",
        "edit_one", "edit_two_aspects", "edit_auto", "edit_align_cot", "edit_pretrain_nocfg",
    ],
)  # fmt: skip
def test_every_recorded_fact_of_a_group_is_reproduced(golden_pipeline: Pipeline, name: str) -> None:
    checks = run_group(golden_pipeline, name)
    assert [check for check in checks if not check.is_ok] == []
    assert len(checks) >= 10


def test_the_whole_recording_is_one_group_of_the_other_one(golden_pipeline: Pipeline) -> None:
    recording = Recording(EDIT.parent)
    assert group_names(recording)[-1] == "edit"
    (group,) = (g for g in list_groups(golden_pipeline, recording, {"edit"}) if not g.skipped)
    assert next(group.checks).group == "edit_sizes"


@pytest.mark.parametrize(
    ("mode", "group"),
    [
        ("layers2", "edit_auto"),
        ("cfg2", "edit_align_cot"),
        ("cfg2xtensor2", "edit_auto"),
    ],
)
def test_the_recordings_hold_on_a_mesh(mode: str, group: str) -> None:
    request = Request(
        checkpoint=EDIT.parent / "model", recording=EDIT, only=frozenset({group}), mode=mode
    )
    assert verify_recording(request)
