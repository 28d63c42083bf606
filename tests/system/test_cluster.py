"""A Ray cluster of two nodes on this machine: what is killed or replaced costs no task."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runware import Runware, RunwareError

from tests.waiting import until, wait_until

pytest.importorskip("ray", reason="needs the extra `ray`")
pytestmark = pytest.mark.slow

NUM_TASKS, NUM_IMAGES = 50, 2
RAY, HYIMAGE = (str(Path(sys.executable).with_name(name)) for name in ("ray", "hyimage"))
DEPLOY_TIMEOUT_S, DRAW_TIMEOUT_S = 300, 480


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Cluster:
    """Two nodes of one Ray cluster; each has room for one engine."""

    def __init__(self, checkpoint: Path) -> None:
        # Not pytest's folder: the names of Ray's sockets would be too long for the kernel.
        self.folder = Path(tempfile.mkdtemp(prefix="hyimage-ray-"))
        self.address, self.port = f"127.0.0.1:{free_port()}", free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **os.environ,
            "RAY_USAGE_STATS_ENABLED": "0",
            "HYIMAGE_IMAGES__STORE": str(self.folder / "images"),
            "HYIMAGE_TASKS__DATABASE_URL": f"sqlite:///{self.folder}/tasks.db",
            "HYIMAGE_TASKS__LEASE_S": "3",
            "HYIMAGE_KEYS__FILE": str(self.folder / "keys.json"),
            "HYIMAGE_WORKER__CHECKPOINT": str(checkpoint),
            "HYIMAGE_WORKER__NUM_THREADS": "1",
            "HYIMAGE_CLUSTER__ENGINES": "2",
            "HYIMAGE_CLUSTER__CPUS_PER_ENGINE": "1",
            "HYIMAGE_CLUSTER__ENGINE_RESOURCES": '{"engine": 2}',
        }
        self.nodes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        _, _, port = self.address.partition(":")
        self._start_node("--head", "--port", port, "--include-dashboard=false")
        self._start_node("--address", self.address)

    def _start_node(self, *flags: str) -> None:
        log = self.folder / f"node{len(self.nodes)}.log"
        # Room for an old and a new engine, as a replacement starts before the old one is gone.
        command = [RAY, "start", "--block", "--num-cpus=16", '--resources={"engine": 3}']
        command += ["--object-store-memory=100000000", "--disable-usage-stats", *flags]
        ports = ["--dashboard-agent-listen-port"]
        if "--head" in flags:
            command += ["--temp-dir", str(self.folder / "ray")]
            ports += ["--ray-client-server-port", "--dashboard-port"]
        for flag in ports:  # the usual ones may be another cluster's
            command += [flag, str(free_port())]
        with log.open("wb") as file:
            node = subprocess.Popen(
                command, env=self.environment, stdout=file, stderr=subprocess.STDOUT
            )
        self.nodes.append(node)

        def is_started() -> bool:
            assert node.poll() is None, log.read_text()
            return b"Ray runtime started" in log.read_bytes()

        wait_until(is_started, 120, every_s=0.2)

    def serve(self, *flags: str) -> subprocess.Popen[bytes]:
        command = [
            HYIMAGE,
            "serve",
            "--cluster",
            self.address,
            "--port",
            str(self.port),
        ]
        with (self.folder / "serve.log").open("ab") as log:
            return subprocess.Popen(
                [*command, *flags], env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )

    def end_serve(self, process: subprocess.Popen[bytes]) -> None:
        assert process.wait(timeout=DEPLOY_TIMEOUT_S) == 0, (self.folder / "serve.log").read_text()

    def replicas(self, name: str) -> list[int]:
        """Return the processes of our nodes that run a replica of this deployment."""
        title = f"ray::ServeReplica:hyimage:{name}".encode()
        found = []
        for pid in descendants([node.pid for node in self.nodes]):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(title):
                    found.append(pid)
        return found

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        uri = f"file:{self.folder}/tasks.db?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            return connection.execute(query).fetchall()

    def stop(self) -> None:
        pids = descendants([node.pid for node in self.nodes])
        for node in reversed(self.nodes):
            node.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(timeout=30)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for node in self.nodes:
            node.wait(timeout=30)
        shutil.rmtree(self.folder, ignore_errors=True)


def descendants(pids: list[int]) -> list[int]:
    found: list[int] = []
    for pid in pids:
        with contextlib.suppress(OSError):
            threads = list(Path(f"/proc/{pid}/task").iterdir())
            children = [int(c) for t in threads for c in (t / "children").read_text().split()]
            found += [*children, *descendants(children)]
    return found


@pytest.fixture(scope="module")
def cluster(tiny_checkpoint: Path) -> Iterator[Cluster]:
    cluster = Cluster(tiny_checkpoint)
    try:
        cluster.start()
        cluster.end_serve(cluster.serve())
        yield cluster
        cluster.end_serve(cluster.serve("--down"))
    finally:
        cluster.stop()


async def generate(client: Runware, index: int) -> list[dict[str, Any]]:
    """Generate one task as an application would that wants its image."""
    task_uuid = str(uuid.uuid4())
    task = {
        "taskType": "imageInference",
        "taskUUID": task_uuid,
        "model": "runware:180@1",
        "positivePrompt": "a red fox",
        "width": 256,
        "height": 256,
        "steps": 8,
        "numberResults": NUM_IMAGES,
        "seed": index % (NUM_TASKS // 2),  # each image is generated for two tasks
        "outputFormat": "PNG",
    }
    try:
        return await client.run(task)
    except RunwareError as e:
        # It had been accepted when the answer was lost, and the client sent it again.
        if "taskUUID" not in str(e):
            raise
    items: list[Any] = []

    async def is_finished() -> bool:
        items[:] = await client.get_response({"taskUUID": task_uuid})
        return all(item["status"] == "success" for item in items)

    await until(is_finished, DRAW_TIMEOUT_S, every_s=0.5)
    return items


def is_done(task: "asyncio.Task[Any]") -> bool:
    """Return whether a task is done; raise what it raised."""
    if task.done():
        task.result()
    return task.done()


async def generate_through_faults(cluster: Cluster) -> list[list[dict[str, Any]]]:
    client = Runware(
        api_key="any-key", transport="rest", http_base_url=f"{cluster.url}/v1", max_retries=6
    )
    await client.connect()
    tasks = [asyncio.create_task(generate(client, index)) for index in range(NUM_TASKS)]

    async def wait_for(num_finished: int) -> None:
        def are_finished() -> bool:
            return sum(is_done(task) for task in tasks) >= num_finished

        await until(are_finished, DRAW_TIMEOUT_S, every_s=0.1)

    await wait_for(4)
    os.kill(cluster.replicas("Engine")[0], signal.SIGKILL)
    await wait_for(12)
    os.kill(cluster.replicas("Ingress")[0], signal.SIGKILL)
    await wait_for(20)
    before = set(cluster.replicas("Engine") + cluster.replicas("Ingress"))
    replacement = cluster.serve()
    results = await asyncio.gather(*tasks)
    await asyncio.to_thread(cluster.end_serve, replacement)
    assert not before & set(cluster.replicas("Engine") + cluster.replicas("Ingress"))
    await client.close()
    return results


def test_tasks_survive_dead_replicas_and_a_rolling_restart(cluster: Cluster) -> None:
    results = asyncio.run(asyncio.wait_for(generate_through_faults(cluster), DRAW_TIMEOUT_S))
    images: dict[int, set[bytes]] = {}
    for index, items in enumerate(results):
        first = index % (NUM_TASKS // 2)
        assert sorted(item["seed"] for item in items) == [first, first + 1]
        for item in items:
            with urllib.request.urlopen(item["imageURL"], timeout=60) as response:
                images.setdefault(item["seed"], set()).add(response.read())
    assert {len(same) for same in images.values()} == {1}, "an image depends on its seed alone"
    tasks = cluster.rows("SELECT task_uuid, status FROM tasks")
    assert len(tasks) == NUM_TASKS
    assert {status for _, status in tasks} == {"success"}
    counts = cluster.rows("SELECT count(*) FROM images GROUP BY task_uuid, position")
    assert counts == [(1,)] * (NUM_TASKS * NUM_IMAGES)


def test_a_cluster_that_is_not_there_is_named(cluster: Cluster) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    command = [HYIMAGE, "serve", "--cluster", nobody]
    done = subprocess.run(
        command, env=cluster.environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert nobody in done.stderr
    assert "ray start" in done.stderr
