"""The operator's commands as processes of their own, against a server that generates."""

import json
import os
import pty
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import HYIMAGE, ServerProcess
from tests.waiting import wait_until

WIDE = {**os.environ, "COLUMNS": "200"}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HYIMAGE, *words], capture_output=True, text=True, timeout=300, check=False
    )


def status_of(server: ServerProcess) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(server.get("/v1/status")[0])
    return body


def send_long_task(server: ServerProcess) -> str:
    task_uuid = str(uuid.uuid4())
    server.post(
        {
            "taskType": "imageInference", "taskUUID": task_uuid, "model": "runware:180@1",
            "positivePrompt": "a red fox", "width": 256, "height": 256, "steps": 100,
            "numberResults": 20, "deliveryMethod": "async",
        }
    )  # fmt: skip
    wait_until(lambda: status_of(server)["queue"]["running"] == 1)
    return task_uuid


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """Yield both ends of a terminal: the one to read, and the one for a process."""
    ours, theirs = pty.openpty()
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.slow
def test_a_load_over_every_transport_then_its_comparison_with_itself(
    shared_server: ServerProcess, tmp_path: Path
) -> None:
    figures = str(tmp_path / "load.json")
    done = run(
        "bench", "load", shared_server.url, "--concurrency", "2", "--rate", "5", "--requests", "6",
        "--warm-up", "1", "--steps", "2", "--size", "256x256", "--transport", "sync", "--transport",
        "async", "--transport", "websocket", "--json", figures,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for level in json.loads(Path(figures).read_text())["levels"]:
        assert (level["num_ok"], level["errors"]) == (6, {})
        assert level["queue_wait"]["count"] == 6
        assert 0 <= level["queue_wait"]["p50"] <= level["latency"]["p50"]
    compared = run("bench", "compare", figures, figures)
    assert compared.returncode == 0, compared.stdout
    assert "0 of" in compared.stdout
    speeds = status_of(shared_server)["speeds"]
    assert [speed["megapixels"] for speed in speeds] == [0.066]
    assert speeds[0]["secondsPerStep"] > 0


@pytest.mark.slow
def test_a_running_task_is_seen_and_cancelled(shared_server: ServerProcess) -> None:
    task_uuid = send_long_task(shared_server)
    seen = run("status", shared_server.url)  # a pipe gets it once
    assert seen.returncode == 0, seen.stderr
    assert task_uuid in seen.stdout
    assert "MiB resident" in seen.stdout
    done = run("cancel", task_uuid, shared_server.url)
    assert (done.returncode, done.stdout.split()) == (0, [task_uuid, "cancelled"])
    assert status_of(shared_server)["tasks"] == []


@pytest.mark.slow
def test_a_live_table_is_drawn_again_and_ends_cleanly_with_ctrl_c(
    shared_server: ServerProcess,
) -> None:
    command = [*HYIMAGE, "status", shared_server.url, "--every", "0.2"]
    shown = b""
    with terminal() as (ours, theirs):
        process = subprocess.Popen(
            command, stdout=theirs, stderr=subprocess.PIPE, env={**WIDE, "TERM": "xterm"}
        )
        while shown.count(b"worker") < 3:
            shown += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        os.set_blocking(ours, False)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert errors == b""


@pytest.mark.slow
def test_a_load_that_is_interrupted_leaves_nothing_running(
    shared_server: ServerProcess, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [
            *HYIMAGE, "bench", "load", shared_server.url, "--concurrency", "3", "--warm-up", "0",
            "--steps", "100", "--size", "256x256", "--timeout", "600",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_until(lambda: len(status_of(shared_server)["tasks"]) == 3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert b"Traceback" not in errors
    wait_until(lambda: status_of(shared_server)["tasks"] == [])
