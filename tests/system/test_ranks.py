"""Ranks of a mesh end together: nobody waits in a collective for a rank that is dead."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.ranks import FAULT_EXIT_CODE
from tests.waiting import wait_until

TIMEOUT_S = 60.0
# A first rank that never joins: the other waits for it in the collective that makes the mesh.
FIRST_RANK = """
import sys, threading
from pipeline.settings import PipelineSettings
from pipeline.ranks import Followers

if __name__ == "__main__":
    settings = PipelineSettings(checkpoint=sys.argv[1], tensor_parallel_size=2)
    followers = Followers(settings)
    print(followers._processes[0].pid, flush=True)
    threading.Event().wait(120)
"""


@pytest.fixture
def ranks(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """A hanging first rank, and the process id of the other."""
    script = tmp_path / "first_rank.py"
    script.write_text(FIRST_RANK, encoding="utf-8")
    root = Path(__file__).parents[2]
    first = subprocess.Popen(
        [sys.executable, str(script), str(tiny_checkpoint)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert first.stdout is not None
    other = int(first.stdout.readline())
    try:
        yield first, other
    finally:
        first.kill()
        first.wait(TIMEOUT_S)
        first.stdout.close()


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_the_first_rank_ends_at_once_when_another_one_is_killed(
    ranks: tuple["subprocess.Popen[str]", int],
) -> None:
    first, other = ranks
    os.kill(other, signal.SIGKILL)
    assert first.wait(TIMEOUT_S) == FAULT_EXIT_CODE


def test_a_rank_that_waits_in_a_collective_ends_when_the_first_one_is_killed(
    ranks: tuple["subprocess.Popen[str]", int],
) -> None:
    first, other = ranks
    first.kill()
    wait_until(lambda: not is_alive(other))
