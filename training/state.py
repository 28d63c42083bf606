"""State and log files of a training run. A state file is written whole or not at all."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

# Receives a line on how far the work is.
Report = Callable[[str], None]


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state file, replacing the one before only when the new one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_state(path: Path) -> dict[str, Any] | None:
    """Return what was saved, or None when nothing was yet."""
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def append_line(path: Path, line: str) -> None:
    """Append one line to a log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
