"""Checks of a checkpoint folder: its files, the disk's speed, what fits on this machine."""

import os
import time
from collections.abc import Callable
from math import prod
from pathlib import Path

import torch

from model.config_file import load_config
from model.errors import CheckpointError, ConfigError, TokenizerError
from model.loading.checkpoint import list_shards
from model.loading.safetensors_file import SafetensorsFile
from model.planning.cards import CARDS, card_of_memory
from model.planning.devices import Devices
from model.planning.memory_plan import RankPlan
from pipeline.checkpoint_info import read_checkpoint_info
from pipeline.settings import PipelineSettings
from tools.doctor.check import Check
from tools.doctor.machine import GpuCard, Machine
from tools.plan import PlanRequest, fastest_fitting, list_plans

READ_BYTES = 2**30  # at most so much of the checkpoint is read to measure the disk
READ_S = 3.0  # and at most so long
SLOW_LOAD_S = 600.0  # a checkpoint that takes longer to read is worth a faster disk
SPARE_BYTES = 10**9  # of the machine's memory, beside the weights: the process, one image's tensors

# Command lines that serve a checkpoint as planned.
Commands = Callable[[RankPlan, PlanRequest, Path], str]


def check_files(folder: Path) -> Check:
    """Return whether a folder holds a checkpoint of this model, each file of it whole."""
    try:
        load_config(folder)
        read_checkpoint_info(folder)
        num_parameters = 0
        for shard, promised in list_shards(folder).items():
            with SafetensorsFile(folder / shard) as file:
                stored = {tensor.name: prod(tensor.shape) for tensor in file.tensors}
            if absent := [name for name in promised if name not in stored]:
                raise CheckpointError(
                    f"{folder / shard} lacks {absent[0]} and {len(absent) - 1} more; download this "
                    "shard again"
                )
            num_parameters += sum(stored.values())
    except (ConfigError, CheckpointError, TokenizerError) as e:
        return Check(
            name="checkpoint",
            status="fail",
            sentence=str(e),
            next_step="hyimage download instruct; checkpoints/tiny is a small one to try",
        )
    size = stored_bytes(folder)
    sentence = f"{folder}: {num_parameters / 1e6:,.1f} million values, {_size(size)}, all there"
    return Check(name="checkpoint", status="ok", sentence=sentence)


def check_disk(folder: Path, read_bytes: int = READ_BYTES) -> Check:
    """Return how fast the weights are read from their disk, and how long that takes for all."""
    num_read, seconds = 0, 0.0
    for path in sorted(folder.glob("*.safetensors")):
        if num_read < read_bytes and seconds < READ_S:
            more_bytes, more_s = _read(path, read_bytes - num_read, READ_S - seconds)
            num_read, seconds = num_read + more_bytes, seconds + more_s
    speed = num_read / max(seconds, 1e-9)
    load_s = stored_bytes(folder) / max(speed, 1e-9)
    sentence = (
        f"{speed / 1e9:.2f} GB/s over {_size(num_read)} of one stream: the whole checkpoint in "
        f"{load_s:.0f} s"
    )
    if load_s > SLOW_LOAD_S:
        return Check(
            name="disk",
            status="warn",
            sentence=sentence,
            next_step="a local NVMe disk; hyimage bench loading measures several streams",
        )
    return Check(name="disk", status="ok", sentence=sentence)


def check_fit(
    folder: Path, machine: Machine, settings: PipelineSettings, commands: Commands
) -> Check:
    """Return what fits: on the cards as `hyimage plan` counts it, else in the machine's memory."""
    config = load_config(folder)
    if not machine.cards:
        return _fit_in_memory(folder, machine, settings)
    request = PlanRequest(config=config, devices=_devices_of(machine.cards, machine))
    best = fastest_fitting(list(list_plans(request)), request.devices)
    found = f"{len(machine.cards)}x{request.devices.memory_bytes / 1e9:.0f} GB"
    if best is None:
        return Check(
            name="fits",
            status="fail",
            sentence=f"no mode fits on {found}, also not with int4 weights and offloaded experts",
            next_step=_plan_for(folder),
        )
    scheme = "" if best.scheme == "none" else f" with {best.scheme} weights"
    return Check(
        name="fits",
        status="ok",
        sentence=f"{best.mode}{scheme} on {found}, {best.total / 1e9:.1f} GB on the fullest, as "
        "counted, never measured",
        next_step=commands(best, request, folder),
    )


def stored_bytes(folder: Path) -> int:
    """Return the size of the weights on disk."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _fit_in_memory(folder: Path, machine: Machine, settings: PipelineSettings) -> Check:
    needed = _held_bytes(folder, getattr(torch, settings.weights_dtype)) + SPARE_BYTES
    free = machine.free_bytes
    sentence = (
        f"{_size(needed)} in {settings.weights_dtype} with what one image needs; {_size(free)} of "
        "memory are available"
    )
    if needed <= free:
        return Check(name="fits", status="ok", sentence=f"in the machine's memory: {sentence}")
    return Check(
        name="fits",
        status="fail",
        sentence=f"not in the machine's memory: {sentence}",
        next_step=_plan_for(folder),
    )


def _plan_for(folder: Path) -> str:
    return f"hyimage plan --checkpoint {folder} --gpus COUNTxMEMORY, with other cards"


def _held_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Return the memory of the weights, floating point ones in a dtype."""
    held = 0
    for shard in list_shards(folder):
        with SafetensorsFile(folder / shard) as file:
            for tensor in file.tensors:
                is_wide = tensor.dtype.is_floating_point and tensor.dtype.itemsize > 1
                held += prod(tensor.shape) * (dtype if is_wide else tensor.dtype).itemsize
    return held


def _devices_of(cards: tuple[GpuCard, ...], machine: Machine) -> Devices:
    """Return cards as the plan takes them: equal ones, as large as the smallest."""
    memory = min(card.total_bytes for card in cards)
    known = next((card for key, card in CARDS.items() if key in cards[0].name), None)
    return Devices(
        count=len(cards),
        memory_bytes=memory,
        card=known or card_of_memory(memory),
        has_compiler=not machine.compiler_fault,
    )


def _read(path: Path, most_bytes: int, most_s: float) -> tuple[int, float]:
    """Return the bytes read from a file that the system does not hold in memory, and seconds."""
    buffer, num_read = bytearray(16 * 2**20), 0
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        while num_read < most_bytes and time.perf_counter() - start < most_s:
            count = file.readinto(buffer)
            if not count:
                break
            num_read += count
        return num_read, time.perf_counter() - start


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
