"""The table of `hyimage verify`."""

import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.multiprocessing.spawn import spawn

from model.config_file import load_config
from model.loading.shard_plan import check_divisible
from model.mesh import Mesh, leave_mesh
from pipeline.load import load_pipeline
from pipeline.ranks import join_settings_mesh
from pipeline.settings import PipelineSettings
from server.runware.errors import CommandError
from tools.verify.checks import Check
from tools.verify.recording import Recording
from tools.verify.run import Group, list_groups

_HEADER = f"{'tensor':<44} {'shape':<16} {'max error':>10}  {'tolerance':<22} ok"


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What to verify, and in which mode."""

    checkpoint: Path
    recording: Path
    only: frozenset[str]
    failures_only: bool
    mode: str = "single"

    @property
    def settings(self) -> PipelineSettings:
        """Return the worker's settings of the mode.

        Raises:
            CommandError: the mode is not known.
        """
        return PipelineSettings.model_validate(
            {"checkpoint": str(self.checkpoint), **parse_mode(self.mode)}
        )


def parse_mode(mode: str) -> dict[str, Any]:
    """Return the worker's settings of "single", "layers2", "cfg2xtensor2", "tensor2-expert", ...

    Raises:
        CommandError: it is not written like that.
    """
    if mode == "single":
        return {}
    if match := re.fullmatch(r"layers([1-9]\d?)", mode):
        return {"layer_devices": ("cpu",) * int(match[1])}
    match = re.fullmatch(r"(?:cfg(2))?x?(?:tensor([1-9]\d?)(-expert)?)?", mode)
    if not mode or match is None:
        raise CommandError(
            f"mode {mode!r} is not known; write single, layers2, cfg2, tensor2, cfg2xtensor2 or "
            "cfg2xtensor2-expert"
        )
    cfg, tensor, expert = match.groups()
    return {
        "cfg_parallel_size": int(cfg or 1),
        "tensor_parallel_size": int(tensor or 1),
        "expert_parallel": expert is not None,
    }


def verify_recording(request: Request) -> bool:
    """Print a row for every check and a summary; return whether all of them hold.

    Raises:
        ModelError: the checkpoint or the recording cannot be read.
    """
    settings = request.settings
    if settings.num_ranks == 1:
        return _verify(request, Mesh())
    check_divisible(load_config(request.checkpoint), settings.tensor_parallel_size)
    with tempfile.TemporaryDirectory(prefix="hyimage-verify-") as folder:
        verdict = Path(folder) / "verdict"
        spawn(
            _verify_as_rank,
            args=(request, Path(folder) / "rendezvous", verdict),
            nprocs=settings.num_ranks,
        )
        return verdict.read_text() == "True"


def _verify_as_rank(rank: int, request: Request, rendezvous: Path, verdict: Path) -> None:
    """Run all checks along with the other ranks; the first one prints them."""
    torch.set_num_threads(1)
    mesh = join_settings_mesh(request.settings, rank, rendezvous)
    is_ok = _verify(request, mesh)
    if mesh.is_first:
        verdict.write_text(str(is_ok))
    leave_mesh()


def _verify(request: Request, mesh: Mesh) -> bool:
    console = Console(highlight=False, soft_wrap=True, quiet=not mesh.is_first)
    source, only = Recording(request.recording), set(request.only)
    failures_only = request.failures_only
    pipeline = load_pipeline(request.settings, skip=(), mesh=mesh)
    groups = list(list_groups(pipeline, source, only))
    if unknown := only - {group.name for group in groups}:
        known = ", ".join(group.name for group in groups)
        console.print(f"[red]no group {', '.join(sorted(unknown))}; there are: {known}[/red]")
        return False
    counts = [_print_group(console, group, failures_only) for group in groups]
    num_checks, num_failed = (sum(column) for column in zip(*counts, strict=True))
    verdict = "[green]all hold[/green]" if not num_failed else f"[red]{num_failed} FAILED[/red]"
    console.print(f"\n{num_checks} checks, {verdict}")
    for group in groups:
        if group.skipped:
            console.print(f"skipped {group.name}: {group.skipped}")
    return num_checks > 0 and not num_failed


def _print_group(console: Console, group: Group, failures_only: bool) -> tuple[int, int]:
    if group.skipped:
        return 0, 0
    started = time.monotonic()
    rows: list[Check] = []
    console.print(f"\n[bold]{group.name}[/bold]\n{_HEADER}")
    for check in group.checks:
        rows.append(check)
        if not (failures_only and check.is_ok):
            console.print(_line(check), markup=False)
    num_failed = sum(not row.is_ok for row in rows)
    elapsed_s = time.monotonic() - started
    console.print(f"{group.name}: {len(rows)} checks, {num_failed} failed, {elapsed_s:.1f} s")
    return len(rows), num_failed


def _line(check: Check) -> str:
    error = "" if check.max_error is None else f"{check.max_error:.2e}"
    verdict = "ok" if check.is_ok else "FAILED"
    note = f"  ({check.note})" if check.note else ""
    return f"{check.name:<44} {check.shape:<16} {error:>10}  {check.tolerance:<22} {verdict}{note}"
