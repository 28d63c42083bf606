"""Real server processes, each with its own folder and port."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.request import ImageRequest
from server.engine.messages import Job
from tests.waiting import wait_until

START_TIMEOUT_S = 120
HYIMAGE = [sys.executable, "-m", "cli.app"]


class ServerProcess:
    """`hyimage serve` as a child, restartable on the same data."""

    def __init__(self, folder: Path, checkpoint: Path, **environment: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.flags = ["--port", str(self.port), "--checkpoint", str(checkpoint)]
        self.environment = {
            **os.environ,
            "HYIMAGE_IMAGES__STORE": str(folder / "images"),
            "HYIMAGE_TASKS__DATABASE_URL": f"sqlite:///{folder}/tasks.db",
            "HYIMAGE_KEYS__FILE": str(folder / "keys.json"),
            **environment,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*HYIMAGE, "serve", *self.flags],
                env=self.environment,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        wait_until(self.is_ready, START_TIMEOUT_S, every_s=0.1)

    def is_ready(self) -> bool:
        """Return whether it generates images; fail if the process has ended."""
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        try:
            self.get("/ready")
        except (urllib.error.URLError, ConnectionError):
            return False
        return True

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return what the task store answers to a query."""
        uri = f"file:{self.folder}/tasks.db?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            return connection.execute(query).fetchall()

    def children(self) -> list[int]:
        assert self.process is not None
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [int(pid) for t in threads for pid in (t / "children").read_text().split()]

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End the server and wait until its worker is gone too."""
        if self.process is None or self.process.poll() is not None:
            return
        children = self.children()
        self.process.send_signal(how)
        self.process.wait(timeout=60)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))

    def get(self, path: str) -> tuple[bytes, str]:
        url = path if path.startswith("http") else f"{self.url}{path}"
        with urllib.request.urlopen(url, timeout=60) as response:
            return response.read(), response.headers["content-type"]

    def post(self, *tasks: dict[str, Any]) -> dict[str, Any]:
        """Return the envelope, whatever the status."""
        request = urllib.request.Request(
            f"{self.url}/v1", json.dumps(tasks).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                envelope: dict[str, Any] = json.load(response)
        except urllib.error.HTTPError as e:
            envelope = json.load(e)
        return envelope

    def wait_for(self, task_uuid: str, timeout_s: float = 120) -> list[dict[str, Any]]:
        """Poll a task until it is finished; return its items."""
        items: list[dict[str, Any]] = []

        def is_finished() -> bool:
            envelope = self.post({"taskType": "getResponse", "taskUUID": task_uuid})
            assert envelope["data"], envelope
            items[:] = envelope["data"]
            return all(item["status"] == "success" for item in items)

        wait_until(is_finished, timeout_s, every_s=0.1)
        return items


@pytest.fixture
def server_factory(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Make servers that are ended with the test."""
    servers: list[ServerProcess] = []

    def make(checkpoint: Path, **environment: str) -> ServerProcess:
        servers.append(ServerProcess(tmp_path, checkpoint, **environment))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def shared_server(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """One running server for tests that leave it as it was."""
    server = ServerProcess(tmp_path_factory.mktemp("server"), tiny_checkpoint)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def job(image_request: ImageRequest) -> Job:
    return Job(job_id="job", request=image_request, image_format="PNG", quality=95)
