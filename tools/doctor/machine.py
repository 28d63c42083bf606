"""Checks of the machine: torch's build, driver, cards, memory, processor, compiler."""

import os
import platform
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.device import missing_compiler, slow_paths
from pipeline.settings import PipelineSettings
from tools.doctor.check import Check
from tools.first_contact.settings import free_bytes

_QUERY = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
# Below this share of a card free, another process holds much of it.
FREE_SHARE = 0.95
# NCCL shares buffers between processes there. Source: NVIDIA's guide for containers names 1 GB.
MIN_SHARED_BYTES = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuCard:
    """A card as torch has it."""

    name: str
    capability: tuple[int, int]
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Facts of a machine; `driver_cards` are the lines of nvidia-smi, name and driver."""

    torch_version: str
    cuda_version: str | None  # of torch's build; None: built for the CPU
    cuda_fault: str  # why torch has no card; empty if it has, or was not built for it
    driver_cards: tuple[str, ...]
    cards: tuple[GpuCard, ...]
    free_bytes: int
    shared_bytes: int
    num_cores: int
    load: float
    compiler_fault: str


def read_machine() -> Machine:
    """Return the facts of this machine."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        has_cards = torch.cuda.is_available()
    fault = "; ".join(str(one.message) for one in caught) or "torch found no card"
    shared = Path("/dev/shm")
    return Machine(
        torch_version=torch.__version__,
        cuda_version=torch.version.cuda,
        cuda_fault="" if has_cards or torch.version.cuda is None else fault,
        driver_cards=tuple(_driver_cards()),
        cards=tuple(_cards()) if has_cards else (),
        free_bytes=free_bytes("cpu"),
        shared_bytes=shutil.disk_usage(shared).free if shared.is_dir() else 0,
        num_cores=len(os.sched_getaffinity(0)),
        load=os.getloadavg()[0],
        compiler_fault=missing_compiler(),
    )


def check_machine(machine: Machine, settings: PipelineSettings) -> Iterator[Check]:
    """Yield a check for everything that settings need of a machine."""
    build = f"for CUDA {machine.cuda_version}" if machine.cuda_version else "for the CPU"
    python = platform.python_version()
    yield Check(
        name="torch",
        status="ok",
        sentence=f"Python {python}, torch {machine.torch_version}, built {build}",
    )
    yield _check_cuda(machine, settings)
    for index, card in enumerate(machine.cards):
        yield _check_card(index, card, settings)
    if settings.is_cuda and machine.compiler_fault:
        yield Check(
            name="compiler",
            status="warn",
            sentence=f"small operations are not fused: {machine.compiler_fault}",
            next_step="install gcc, and the CUDA build of torch, which brings Triton",
        )
    if settings.num_ranks > 1:
        yield _check_shared(machine)
    yield _check_processor(machine, settings)


def _check_cuda(machine: Machine, settings: PipelineSettings) -> Check:
    wanted = f"worker.device is {settings.device!r}" if settings.is_cuda else ""
    if machine.cards:
        sentence = f"{len(machine.cards)} card(s)"
        if machine.driver_cards:
            sentence += f"; driver {machine.driver_cards[0].rpartition(',')[2].strip()}"
        if settings.is_cuda:
            return Check(name="gpu", status="ok", sentence=sentence)
        return Check(
            name="gpu",
            status="warn",
            sentence=f"{sentence}, and worker.device is {settings.device!r}, which uses none",
            next_step='set worker.device = "cuda" (HYIMAGE_WORKER__DEVICE=cuda)',
        )
    if machine.driver_cards and machine.cuda_version is None:
        return Check(
            name="gpu",
            status="fail" if wanted else "warn",
            sentence=f"the driver has {len(machine.driver_cards)} card(s), and torch is built for "
            "the CPU",
            next_step="make serve TORCH=cuda",
        )
    if machine.cuda_fault:
        return Check(
            name="gpu",
            status="fail" if wanted else "warn",
            sentence=f"torch is built for CUDA and has no card: {machine.cuda_fault}",
            next_step="see what nvidia-smi says; a container needs --gpus all",
        )
    if wanted:
        return Check(
            name="gpu",
            status="fail",
            sentence=f"{wanted}, and this machine has no NVIDIA card that its driver shows",
            next_step='install the driver, or set worker.device = "cpu"',
        )
    return Check(name="gpu", status="ok", sentence="no NVIDIA card, and the settings need none")


def _check_card(index: int, card: GpuCard, settings: PipelineSettings) -> Check:
    free, total = card.free_bytes / 1e9, card.total_bytes / 1e9
    number = ".".join(map(str, card.capability))
    sentence = f"{card.name}, compute capability {number}, {free:.1f} of {total:.1f} GB free"
    if card.free_bytes < FREE_SHARE * card.total_bytes:
        return Check(
            name=f"cuda:{index}",
            status="warn",
            sentence=f"{sentence}: other processes hold the rest",
            next_step="stop them (nvidia-smi lists them), or choose cards with "
            "CUDA_VISIBLE_DEVICES",
        )
    slow = next(slow_paths(settings, card.capability), "") if settings.is_cuda else ""
    return Check(
        name=f"cuda:{index}",
        status="warn" if slow else "ok",
        sentence="; ".join(filter(None, (sentence, slow))),
    )


def _check_shared(machine: Machine) -> Check:
    size = f"{machine.shared_bytes / 1e9:.1f} GB of shared memory in /dev/shm"
    if machine.shared_bytes >= MIN_SHARED_BYTES:
        return Check(name="shared memory", status="ok", sentence=size)
    return Check(
        name="shared memory",
        status="warn",
        sentence=f"{size}, and several processes generate together",
        next_step="docker run --ipc=host, or --shm-size=1g",
    )


def _check_processor(machine: Machine, settings: PipelineSettings) -> Check:
    sentence = (
        f"{machine.num_cores} cores at a load of {machine.load:.1f}, "
        f"{machine.free_bytes / 1e9:.1f} GB of memory available"
    )
    if machine.load > machine.num_cores and not (settings.num_threads or settings.is_cuda):
        return Check(
            name="processor",
            status="warn",
            sentence=f"{sentence}: others use the cores, and each product waits for the slowest",
            next_step="set worker.num_threads to the cores that are free",
        )
    return Check(name="processor", status="ok", sentence=sentence)


def _cards() -> Iterator[GpuCard]:
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        yield GpuCard(
            name=torch.cuda.get_device_name(index),
            capability=torch.cuda.get_device_capability(index),
            free_bytes=free,
            total_bytes=total,
        )


def _driver_cards() -> list[str]:
    if shutil.which(_QUERY[0]) is None:
        return []
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []
