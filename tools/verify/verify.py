"""Verification of a checkpoint against a recording, in one process or on a mesh."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.multiprocessing.spawn import spawn

from model.config_file import load_config
from model.loading.shard_plan import check_divisible
from model.mesh import SINGLE, Mesh, leave_mesh
from pipeline.load import load_pipeline
from pipeline.ranks import join_settings_mesh, settings_of_rank
from pipeline.settings import PipelineSettings
from server.runware.errors import CommandError
from tools.modes import parse_mode
from tools.verify.checks import Check
from tools.verify.recording import Recording
from tools.verify.run import Group, group_names, list_groups


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What to verify, and in which mode. Without groups in `only`: all of them."""

    checkpoint: Path
    recording: Path
    only: frozenset[str] = frozenset()
    mode: str = "single"
    device: str = "cpu"

    @property
    def settings(self) -> PipelineSettings:
        """The pipeline's settings of the mode: float32 everywhere, TF32 off."""
        spread = parse_mode(self.mode, self.device)
        return PipelineSettings.model_validate(
            {
                "checkpoint": str(self.checkpoint),
                "device": spread.get("layer_devices", (self.device,))[0],
                "dtype": "float32",
                "vae_dtype": "float32",
                **spread,
            }
        )


@dataclass(frozen=True, slots=True)
class GroupStarted:
    """The checks of a group follow."""

    name: str


@dataclass(frozen=True, slots=True)
class GroupDone:
    """All checks of a group are reported."""

    name: str
    num_checks: int
    num_failed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class GroupSkipped:
    """A group was left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Verified:
    """The totals, after everything else."""

    num_checks: int
    num_failed: int

    @property
    def is_ok(self) -> bool:
        return self.num_checks > 0 and not self.num_failed


Event = GroupStarted | Check | GroupDone | GroupSkipped | Verified
Report = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Show nothing."""


def verify_recording(request: Request, report: Report = ignore) -> bool:
    """Run the checks and report each; return whether all of them hold.

    On a mesh the first rank's process calls `report`, which must therefore be picklable.

    Raises:
        CommandError: the mode or a group is not known.
        ModelError: the checkpoint or the recording cannot be read.
    """
    settings = request.settings
    known = group_names(Recording(request.recording))
    if unknown := request.only - set(known):
        raise CommandError(
            f"no group {', '.join(sorted(unknown))} in {request.recording}; "
            f"there are: {', '.join(known)}"
        )
    if settings.num_ranks == 1:
        return verify_as_rank(request, SINGLE, report)
    check_divisible(load_config(request.checkpoint), settings.tensor_parallel_size)
    with tempfile.TemporaryDirectory(prefix="hyimage-verify-") as folder:
        verdict = Path(folder) / "verdict"
        spawn(
            _verify_in_process,
            args=(request, Path(folder) / "rendezvous", verdict, report),
            nprocs=settings.num_ranks,
        )
        return verdict.read_text() == "True"


def _verify_in_process(
    rank: int, request: Request, rendezvous: Path, verdict: Path, report: Report
) -> None:
    """Run all checks along with the other ranks; the first one reports them."""
    torch.set_num_threads(1)
    mesh = join_settings_mesh(request.settings, rank, rendezvous)
    is_ok = verify_as_rank(request, mesh, report if mesh.is_first else ignore)
    if mesh.is_first:
        verdict.write_text(str(is_ok))
    leave_mesh()


def verify_as_rank(request: Request, mesh: Mesh, report: Report) -> bool:
    """Run the checks along with the other ranks of a mesh; return whether all of them hold.

    Raises:
        ModelError: the checkpoint or the recording cannot be read.
    """
    settings = settings_of_rank(request.settings, mesh.rank)
    pipeline = load_pipeline(settings, skip=(), mesh=mesh)
    groups = list(list_groups(pipeline, Recording(request.recording), set(request.only)))
    done = [_run_group(group, report) for group in groups if not group.skipped]
    for group in groups:
        if group.skipped:
            report(GroupSkipped(group.name, group.skipped))
    total = Verified(sum(d.num_checks for d in done), sum(d.num_failed for d in done))
    report(total)
    return total.is_ok


def _run_group(group: Group, report: Report) -> GroupDone:
    started = time.monotonic()
    num_checks = num_failed = 0
    report(GroupStarted(group.name))
    for check in group.checks:
        num_checks += 1
        num_failed += not check.is_ok
        report(check)
    done = GroupDone(group.name, num_checks, num_failed, time.monotonic() - started)
    report(done)
    return done
