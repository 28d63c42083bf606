"""Settings of a first contact, and the sizes at which its parts run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from model.config import ModelConfig
from model.config_file import parse_config, read_json
from model.errors import ConfigError
from model.planning.cards import CARDS, Card
from tools.bench.step import StepBench

Row = dict[str, Any]
AddRow = Callable[[Row], None]

# The sides of the real model. Source: config.json of the official checkpoint.
REAL_STEP = StepBench(
    hidden=4096,
    head_dim=128,
    kv_heads=8,
    expert_width=3072,
    experts=64,
    top_k=8,
    image_tokens=4096,
    dtype="bfloat16",
)
REHEARSED_STEP = StepBench(
    hidden=256,
    head_dim=64,
    kv_heads=1,
    expert_width=128,
    experts=8,
    top_k=2,
    image_tokens=64,
    prompt_tokens=20,
    repeats=2,
    dtype="bfloat16",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstContact:
    """Where and how to run. `recording` is the folder of the recorded checkpoint, tests/golden."""

    device: str
    output: Path
    recording: Path
    is_quick: bool = False

    @property
    def is_rehearsal(self) -> bool:
        """Whether this shows only that the parts run: sizes are small, and no time means much."""
        return not self.device.startswith("cuda") or not torch.cuda.is_available()

    @property
    def step(self) -> StepBench:
        """The step to measure, one layer deep."""
        step = REHEARSED_STEP if self.is_rehearsal else REAL_STEP
        repeats = 2 if self.is_quick else step.repeats
        return replace(step, layers=1, device=self.device, repeats=repeats)

    @property
    def depths(self) -> tuple[int, ...]:
        return (1, 2) if self.is_rehearsal or self.is_quick else (1, 2, 4)

    def real_config(self) -> ModelConfig:
        """Return the architecture of the real base model.

        Raises:
            ConfigError: the recording's folder does not hold it.
        """
        fields = read_json(self.recording / "real_config_distil.json", ConfigError)
        distilled = ("cfg_distilled", "use_meanflow")
        return parse_config({k: v for k, v in fields.items() if k not in distilled})

    def card(self) -> Card:
        """Return the rates of the card in use; of an H100 if it is not a known one."""
        if self.is_rehearsal:
            return CARDS["H100"]
        name = torch.cuda.get_device_name(self.device)
        return next((card for key, card in CARDS.items() if key in name), CARDS["H100"])


@dataclass(frozen=True, slots=True)
class Part:
    """One part: what it does, the most time it may take, and whether --quick leaves it out."""

    name: str
    title: str
    limit_s: float
    run: Callable[[FirstContact, AddRow], None]
    is_long: bool = False


def check_device(device: str) -> str:
    """Return a device that torch can use; plain "cuda" is the first card.

    Raises:
        ConfigError: there is none of that name.
    """
    if device == "cpu":
        return device
    count = torch.cuda.device_count()
    known = [f"cuda:{index}" for index in range(count)]
    wanted = "cuda:0" if device == "cuda" else device
    if wanted not in known:
        raise ConfigError(
            f"there is no device {device!r}; torch {torch.__version__} finds "
            f"{', '.join(known) or 'no CUDA device'}. --device cpu runs a rehearsal"
        )
    return wanted


def free_bytes(device: str) -> int:
    """Return the free memory of a device; of the machine for a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    return next(_meminfo("MemAvailable"), 0)


def _meminfo(field: str) -> Iterator[int]:
    path = Path("/proc/meminfo")
    for line in path.read_text().splitlines() if path.is_file() else ():
        if line.startswith(f"{field}:"):
            yield int(line.split()[1]) * 1024
