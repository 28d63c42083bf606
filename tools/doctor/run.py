"""All checks of `hyimage doctor`, in the order in which they help."""

from collections.abc import Iterator
from pathlib import Path

from server.settings import Settings
from tools.doctor.check import Check
from tools.doctor.checkpoint import Commands, check_disk, check_files, check_fit
from tools.doctor.deployment import check_deployment
from tools.doctor.machine import Machine, check_machine, read_machine


def run_checks(
    settings: Settings, commands: Commands, machine: Machine | None = None
) -> Iterator[Check]:
    """Yield the checks of a machine, by default this one, of its settings and their checkpoint."""
    machine = machine or read_machine()
    yield from check_machine(machine, settings.worker)
    yield from check_deployment(settings)
    folder = Path(settings.worker.checkpoint)
    files = check_files(folder)
    yield files
    if files.status == "ok":
        yield check_disk(folder)
        yield check_fit(folder, machine, settings.worker, commands)
