"""Real processes: servers, each with its own folder and port, and a PostgreSQL."""

import contextlib
import glob
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

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
            "HYIMAGE_WORKER__NUM_THREADS": "1",  # with more, workers that share cores thrash
            **environment,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it generates images."""
        self.launch()
        wait_until(self.is_ready, START_TIMEOUT_S, every_s=0.1)

    def launch(self) -> "subprocess.Popen[bytes]":
        """Start it, and return its process at once."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*HYIMAGE, "serve", *self.flags],
                env=self.environment,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,  # a process group of its own, for signals to the group
            )
        return self.process

    def is_listening(self) -> bool:
        """Return whether it answers, ready or not: its task store has its schema by then."""
        try:
            self.get("/health")
        except (urllib.error.URLError, ConnectionError):
            return False
        return True

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
    server = ServerProcess(
        tmp_path_factory.mktemp("server"),
        tiny_checkpoint,
        HYIMAGE_SAFETY__CHECKER="tests.system.detector:build",
    )
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def job(image_request: ImageRequest) -> Job:
    return Job(job_id="job", request=image_request, image_format="PNG", quality=95)


def find_postgres() -> Path | None:
    found = shutil.which("initdb") or next(
        iter(sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))), None
    )
    return Path(found).parent if found else None


def is_reachable(url: str, server: "subprocess.Popen[bytes]", log: Path) -> bool:
    assert server.poll() is None, log.read_text(errors="replace")[-2000:]
    try:
        sa.create_engine(url, poolclass=sa.NullPool).connect().close()
    except sa.exc.OperationalError:
        return False
    return True


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of our own; yields the URL of its first database."""
    binaries = find_postgres()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed (Debian package postgresql)")
    folder = tmp_path_factory.mktemp("postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    as_user: list[str] = []
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        for path in (folder, *folder.parents):
            if path == Path(tempfile.gettempdir()):
                break
            path.chmod(0o755)
        shutil.chown(folder, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    data = str(folder / "data")
    subprocess.run(
        [*as_user, str(binaries / "initdb"), "-D", data, "-U", "postgres", "--auth=trust"],
        check=True, capture_output=True, timeout=120, cwd="/",
    )  # fmt: skip
    log = folder / "postgres.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*as_user, str(binaries / "postgres"), "-D", data, "-p", str(port), "-k", data],
            stdout=output, stderr=output, cwd="/",
            start_new_session=True,  # what ends other tests' processes does not end it
        )  # fmt: skip
    try:
        url = f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
        wait_until(lambda: is_reachable(url, server, log), every_s=0.1)
        yield url
        assert server.poll() is None, log.read_text(errors="replace")[-2000:]
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/tasks.db"
    return new_database(request.getfixturevalue("postgres"))


def new_database(postgres_url: str) -> str:
    """Return the URL of an empty database on a PostgreSQL server."""
    first = sa.make_url(postgres_url)
    name = f"test_{uuid.uuid4().hex}"
    engine = sa.create_engine(first, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    return first.set(database=name).render_as_string(hide_password=False)
