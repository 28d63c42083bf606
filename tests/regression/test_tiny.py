"""The shipped checkpoint generates the images that it generated when it was shipped.

The recording is of this implementation: it shows that results change, not that they are wrong.
After a change that is meant: `hyimage record --checkpoint checkpoints/tiny tests/regression`.
"""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.load import Pipeline
from server.runware.errors import CommandError
from tools.verify.record import KIND, record_checkpoint
from tools.verify.verify import Request, verify_recording

HERE = Path(__file__).parent
CHECKPOINT = HERE.parents[1] / "checkpoints" / "tiny"


def test_the_shipped_checkpoint_generates_what_it_drew() -> None:
    request = Request(checkpoint=CHECKPOINT, recording=HERE)
    assert verify_recording(request)


def test_the_recording_says_what_it_is() -> None:
    assert json.loads((HERE / "manifest.json").read_text())["which"] == KIND


def test_a_recording_of_the_reference_is_not_overwritten(
    tiny_pipeline: Pipeline, tmp_path: Path
) -> None:
    shutil.copy(HERE.parent / "golden" / "manifest.json", tmp_path)
    with pytest.raises(CommandError, match="not ours"):
        record_checkpoint(tiny_pipeline, tmp_path)
