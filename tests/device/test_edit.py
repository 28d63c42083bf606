"""The recordings of input images hold through the CUDA code path."""

from pathlib import Path

import pytest

from tests.device.pretend_functions import pretended_cuda
from tests.device.pretend_mesh import spawn_pretending
from tests.device.test_verify import Failures, verify_rank
from tools.verify.verify import Request, verify_recording

EDIT = Path(__file__).parents[1] / "golden" / "edit"


@pytest.mark.parametrize(
    ("group", "mode"),
    [("edit_auto", "single"), ("edit_text", "single"), ("edit_auto", "layers2")],
)
def test_the_recordings_hold_on_pretended_devices(group: str, mode: str) -> None:
    failed = Failures()
    request = Request(
        checkpoint=EDIT.parent / "model",
        recording=EDIT,
        only=frozenset({group}),
        mode=mode,
        device="cuda",
    )
    with pretended_cuda() as cuda:
        assert verify_recording(request, failed), failed
        assert cuda.record.hazards == []


def test_the_recordings_hold_on_pretended_ranks(tmp_path: Path) -> None:
    """Each rank is a process with a pretending CUDA; NCCL's calls exchange over gloo."""
    request = Request(
        checkpoint=EDIT.parent / "model",
        recording=EDIT,
        only=frozenset({"edit_auto"}),
        mode="tensor2",
        device="cuda",
    )
    spawn_pretending(verify_rank, (request, tmp_path), nprocs=request.settings.num_ranks)
    assert (tmp_path / "failed.txt").read_text() == ""
