"""Facts of the machine: torch, driver, cards, links, processor, memory, disk."""

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from pipeline.device import missing_compiler
from tools.first_contact.settings import AddRow, FirstContact, free_bytes

_QUERY = (
    "name,driver_version,memory.total,power.limit,clocks.max.sm,clocks.max.memory,pcie.link.gen.max"
)
_DISK_BYTES = 256 * 2**20
GIB = 2**30


def check_machine(contact: FirstContact, add: AddRow) -> None:
    """Add a row for each fact."""
    for fact, value in _facts(contact):
        add({"fact": fact, "value": value})


def _facts(contact: FirstContact) -> Iterator[tuple[str, str]]:
    yield "torch", f"{torch.__version__}, built for CUDA {torch.version.cuda}"
    yield "python", platform.python_version()
    yield "system", f"{platform.system()} {platform.release()} {platform.machine()}"
    yield "processor", f"{os.cpu_count()} threads, torch uses {torch.get_num_threads()}"
    yield "memory available", f"{free_bytes('cpu') / GIB:.1f} GiB"
    yield "shared memory", _free(Path("/dev/shm"))
    yield "disk of the output", _free(contact.output)
    yield "disk, written and synced", _write_speed(contact.output)
    yield "fused kernels", missing_compiler() or "can be compiled"
    if torch.cuda.is_available():
        yield from _cuda_facts()
    yield "nvidia-smi", _run("nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv")
    yield "topology", _run("nvidia-smi", "topo", "-m")


def _cuda_facts() -> Iterator[tuple[str, str]]:
    yield "cuDNN", str(torch.backends.cudnn.version())
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        yield (
            f"cuda:{index}",
            f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
            f"{properties.multi_processor_count} multiprocessors, "
            f"{free / GIB:.1f} of {total / GIB:.1f} GiB free",
        )


def _free(folder: Path) -> str:
    if not folder.is_dir():
        return "there is none"
    usage = shutil.disk_usage(folder)
    return f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free"


def _write_speed(folder: Path) -> str:
    path = folder / "speed.tmp"
    block = os.urandom(2**20)
    started = time.perf_counter()
    try:
        with path.open("wb") as file:
            for _ in range(_DISK_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        return f"{_DISK_BYTES / 1e9 / (time.perf_counter() - started):.2f} GB/s"
    finally:
        path.unlink(missing_ok=True)


def _run(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return f"there is no {command[0]}"
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return (done.stdout or done.stderr).strip()
