"""The recordings of input images hold through the CUDA code path."""

from pathlib import Path

import pytest

from tests.device.pretend_functions import pretended_cuda
from tools.verify.checks import Check
from tools.verify.verify import Event, Request, verify_recording

EDIT = Path(__file__).parents[1] / "golden" / "edit"


class Failures(list[Check]):
    """Keeps the checks that failed."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, Check) and not event.is_ok:
            self.append(event)


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
