"""How a server is born and dies: its port and data come first, and signals to its whole group."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import ServerProcess
from tests.system.test_crash import make_task
from tests.system.test_drain import is_running, status_of_ready
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
Factory = Callable[..., ServerProcess]
BURST = 3
LOG_LINE = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ \[[^]]+\] ")


def refusal(server: ServerProcess) -> str:
    """Return the log of a server that ends at once with exit status 2."""
    assert server.launch().wait(timeout=60) == 2, server.log()
    return server.log()


def running_task(server: ServerProcess, **changes: Any) -> dict[str, Any]:
    task = make_task(deliveryMethod="async", seed=1, steps=100, **changes)
    assert "errors" not in server.post(task)
    wait_until(lambda: is_running(server, task))
    return task


def signal_group(server: ServerProcess) -> "subprocess.Popen[bytes]":
    assert server.process is not None
    os.killpg(server.process.pid, signal.SIGTERM)
    return server.process


def test_a_server_whose_port_is_taken_touches_no_data(
    server_factory: Factory, tiny_checkpoint: Path
) -> None:
    first = server_factory(tiny_checkpoint)
    first.start()
    second_data = first.folder / "second"
    second = server_factory(
        tiny_checkpoint,
        HYIMAGE_TASKS__DATABASE_URL=f"sqlite:///{second_data}/tasks.db",
        HYIMAGE_IMAGES__STORE=f"{second_data}/images",
    )
    second.flags[1] = str(first.port)
    log = refusal(second)
    assert f"error port {first.port} of 127.0.0.1 cannot be had" in log
    assert log.count("worker ready") == 1
    assert "Traceback" not in log
    assert not second_data.exists()


def test_a_second_server_on_the_same_data_is_refused_until_the_first_is_dead(
    server_factory: Factory, tiny_checkpoint: Path
) -> None:
    first, second = server_factory(tiny_checkpoint), server_factory(tiny_checkpoint)
    first.start()
    task = running_task(first)
    assert first.process is not None
    assert f"(process {first.process.pid}) uses this task store" in refusal(second)
    assert "it runs now" not in second.log()
    assert is_running(first, task)
    first.stop(signal.SIGKILL)
    second.start()
    second.wait_for(task["taskUUID"])


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_to_the_group_lets_the_worker_finish_what_was_accepted(
    server_factory: Factory, tiny_checkpoint: Path, ranks: int
) -> None:
    server = server_factory(
        tiny_checkpoint,
        HYIMAGE_SERVER__DRAIN_S="120",
        HYIMAGE_WORKER__TENSOR_PARALLEL_SIZE=str(ranks),
    )
    server.start()
    children = server.children()
    running_task(server)
    process = signal_group(server)
    for _ in range(BURST):  # as `timeout` does, which signals the process and its group
        process.send_signal(signal.SIGTERM)
    wait_until(lambda: status_of_ready(server) == 503, timeout_s=10)
    assert process.wait(timeout=120) == 0
    assert server.rows("SELECT status FROM tasks") == [("success",)]
    assert "the worker died" not in server.log()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))


def test_a_signal_to_the_group_ends_a_server_within_its_limit_and_the_next_one_goes_on(
    server_factory: Factory, tiny_checkpoint: Path
) -> None:
    server = server_factory(tiny_checkpoint, HYIMAGE_SERVER__DRAIN_S="0.5")
    server.start()
    task = running_task(server, numberResults=20)
    assert signal_group(server).wait(timeout=30) == 0
    assert server.rows("SELECT status FROM tasks") == [("running",)]
    server.start()
    assert is_running(server, task)


def test_every_line_of_the_log_has_one_format_and_probes_have_none(
    server_factory: Factory, tiny_checkpoint: Path
) -> None:
    server = server_factory(tiny_checkpoint)
    server.start()  # polls /ready
    server.post(make_task())
    server.stop(signal.SIGTERM)
    lines = server.log().splitlines()
    assert [line for line in lines if not LOG_LINE.match(line)] == []
    assert not any("path=/ready" in line for line in lines)
    (serving,) = [line for line in lines if "serving " in line]
    assert serving.endswith(f" on http://127.0.0.1:{server.port}/v1")


def test_a_signal_to_the_group_ends_a_server_that_still_loads(
    server_factory: Factory, tiny_checkpoint: Path
) -> None:
    server = server_factory(tiny_checkpoint)
    server.launch()
    wait_until(lambda: "serving " in server.log())
    process = signal_group(server)
    assert process.wait(timeout=30) == 0
    assert "Traceback" not in server.log()


@pytest.fixture
def endless_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint whose weights never come: a pipe into which nobody writes."""
    copy = tmp_path / "endless"
    shutil.copytree(tiny_checkpoint, copy)
    for weights in copy.glob("*.safetensors"):
        weights.unlink()
        os.mkfifo(weights)
    return copy


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_that_loads_for_ever_ends_with_its_server(
    server_factory: Factory, endless_checkpoint: Path, how: signal.Signals
) -> None:
    server = server_factory(endless_checkpoint)
    server.launch()
    wait_until(lambda: "serving " in server.log())
    wait_until(lambda: any(map(is_reading_a_pipe, server.children())))
    server.stop(how)  # waits until its children are gone
    assert "Traceback" not in server.log()


def is_reading_a_pipe(pid: int) -> bool:
    """Return whether a thread of a process waits in the kernel to open a pipe."""
    channels = Path(f"/proc/{pid}/task").glob("*/wchan")
    with contextlib.suppress(OSError):
        return any("wait_for_partner" in channel.read_text() for channel in channels)
    return False
