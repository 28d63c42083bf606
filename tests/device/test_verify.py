"""The recordings hold through the CUDA code path, on one device and on several."""

from pathlib import Path
from typing import Any

import pytest

from model.mesh import leave_mesh
from pipeline.load import load_pipeline
from pipeline.ranks import join_settings_mesh, settings_of_rank
from tests.device.pretend_functions import pretended_cuda
from tests.device.pretend_mesh import pretended_mesh, spawn_pretending
from tools.verify.checks import Check
from tools.verify.recording import Recording
from tools.verify.run import list_groups
from tools.verify.verify import Event, Request, verify_as_rank, verify_recording

GOLDEN = Path(__file__).parents[1] / "golden"
# What a device changes.
GROUPS = (
    "noise", "vae", "vit", "ar", "square_cfg5_en", "wide_cfg75_cjk_sys", "tall_nocfg", "e2e_auto",
)  # fmt: skip


class Failures(list[Check]):
    """Keeps the checks that failed."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, Check) and not event.is_ok:
            self.append(event)


def failures(*groups: str, mode: str = "single") -> list[Check]:
    failed = Failures()
    request = Request(
        checkpoint=GOLDEN / "model",
        recording=GOLDEN,
        only=frozenset(groups),
        mode=mode,
        device="cuda",
    )
    with pretended_cuda() as cuda:
        is_ok = verify_recording(request, failed)
        assert cuda.record.hazards == []
    assert is_ok == (not failed)
    return failed


@pytest.mark.parametrize("group", GROUPS)
def test_the_recordings_hold_on_one_device(group: str) -> None:
    assert failures(group) == []


@pytest.mark.parametrize("group", ["tall_nocfg"])
def test_the_recordings_hold_with_layers_on_two_devices(group: str) -> None:
    assert failures(group, mode="layers2") == []


def verify_rank(rank: int, request: Request, folder: Path) -> None:
    """Run the checks of one rank of a mesh; the first rank writes down those that failed."""
    mesh = join_settings_mesh(request.settings, rank, folder / "rendezvous")
    failed = Failures()
    is_ok = verify_as_rank(request, mesh, failed)
    if mesh.is_first:
        (folder / "failed.txt").write_text("" if is_ok else f"{len(failed)} failed: {failed}")
    leave_mesh()


@pytest.mark.parametrize(
    ("mode", "group"),
    [
        ("tensor2", "ar"),
        ("tensor2-expert", "tall_nocfg"),
        ("cfg2xtensor2", "square_cfg5_en"),
    ],
)
def test_the_recordings_hold_on_ranks_that_exchange(mode: str, group: str, tmp_path: Path) -> None:
    """Each rank is a process with a pretending CUDA; NCCL's calls exchange over gloo."""
    request = Request(
        checkpoint=GOLDEN / "model",
        recording=GOLDEN,
        only=frozenset({group}),
        mode=mode,
        device="cuda",
    )
    spawn_pretending(verify_rank, (request, tmp_path), nprocs=request.settings.num_ranks)
    assert (tmp_path / "failed.txt").read_text() == ""


def test_checks_of_a_rank_without_the_others_run_on_its_own_device_and_fail(tmp_path: Path) -> None:
    """Its sums lack the others' parts, which the checks must notice."""
    request = Request(checkpoint=GOLDEN / "model", recording=GOLDEN, mode="tensor2", device="cuda")
    with pretended_cuda() as cuda, pretended_mesh() as nccl:
        mesh = join_settings_mesh(request.settings, 1, tmp_path / "rendezvous")
        pipeline = load_pipeline(settings_of_rank(request.settings, 1), skip=(), mesh=mesh)
        wanted: set[str] = {"vae", "tall_nocfg"}
        groups = list_groups(pipeline, Recording(GOLDEN), wanted)
        checks: list[Any] = [check for group in groups for check in group.checks]
        assert not all(check.is_ok for check in checks)
        assert {collective.device for collective in nccl.collectives} == {"cuda:1"}
        assert cuda.record.hazards == []
