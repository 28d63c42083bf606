"""Resident memory of a process and its children, from Linux' /proc."""

import os
from pathlib import Path

_PROC = Path("/proc")


def tree_bytes(pid: int) -> int | None:
    """Return the resident bytes of a process and its children, None where that is not known."""
    own = _resident_bytes(pid)
    if own is None:
        return None
    return own + sum(_resident_bytes(child) or 0 for child in _children(pid))


def _resident_bytes(pid: int) -> int | None:
    try:
        pages = int((_PROC / str(pid) / "statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):  # it has ended, or this is not Linux
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _children(pid: int) -> list[int]:
    """Return the processes that a process has started and that have not ended."""
    children: list[int] = []
    try:
        for thread in (_PROC / str(pid) / "task").iterdir():
            children += map(int, (thread / "children").read_text(encoding="ascii").split())
    except OSError:
        return children
    return children
