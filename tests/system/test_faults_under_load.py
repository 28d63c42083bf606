"""A hundred mixed tasks while something dies, stands still or has to stop: none lost, none twice.

Real processes and signals.
"""

import asyncio
import json
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

from tests.listener import Listener
from tests.system.conftest import ServerProcess
from tests.system.test_crash import make_task, no_calls_are_left
from tests.system.test_soak import measure
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

NUM_TASKS, NUM_WARM, NUM_CANCELS = 100, 25, 50
SIZES = ((256, 256), (384, 128), (128, 384))


def mixed_tasks(count: int, webhook: str = "") -> list[dict[str, Any]]:
    """Return tasks of several sizes, steps, caches and numbers of images, some with a webhook."""
    rng = random.Random(7)
    tasks = []
    for number in range(count):
        width, height = rng.choice(SIZES)
        task = make_task(
            width=width,
            height=height,
            steps=rng.choice((1, 2, 4)),
            numberResults=rng.choice((1, 1, 2)),
            seed=number,
            acceleration=rng.choice(("none", "high")),
            deliveryMethod="async",
        )
        if webhook and number % 4 == 0:
            task["webhookURL"] = webhook
        tasks.append(task)
    return tasks


def worker_pid(server: ServerProcess) -> int:
    return next(
        pid for pid in server.children() if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()
    )


def kill_worker(server: ServerProcess) -> None:
    os.kill(worker_pid(server), signal.SIGKILL)


def stop_worker(server: ServerProcess) -> None:
    os.kill(worker_pid(server), signal.SIGSTOP)


def terminate_group(server: ServerProcess) -> None:
    """End the whole group as systemd does, and start the next server on its data."""
    assert server.process is not None
    os.killpg(server.process.pid, signal.SIGTERM)
    assert server.process.wait(timeout=60) == 0
    server.start()


@pytest.mark.parametrize("fault", [kill_worker, stop_worker, terminate_group])
def test_a_hundred_tasks_end_once_whatever_happens_to_the_worker(
    server_factory: Callable[..., ServerProcess],
    tiny_checkpoint: Path,
    fault: Callable[[ServerProcess], None],
) -> None:
    listener = Listener()
    server = server_factory(
        tiny_checkpoint,
        HYIMAGE_EGRESS__ALLOWED_NETWORKS='["127.0.0.0/8"]',
        HYIMAGE_SERVER__DRAIN_S="1",
        HYIMAGE_WORKER__STALL_TIMEOUT_S="5",
        HYIMAGE_WORKER__NUM_THREADS="1",
    )
    server.start()
    tasks = mixed_tasks(NUM_TASKS, f"{listener.url}/hook")
    for task in tasks:
        assert server.post(task)["data"], task
    ended = "SELECT count(*) FROM tasks WHERE status != 'running'"
    wait_until(lambda: server.rows(ended)[0][0] >= 5)
    fault(server)
    wait_until(lambda: server.rows(ended)[0][0] == NUM_TASKS, 300, every_s=0.5)
    wait_until(lambda: no_calls_are_left(server))
    assert server.rows("SELECT status, count(*) FROM tasks GROUP BY status") == [
        ("success", NUM_TASKS)
    ]
    wanted = {task["taskUUID"]: task["numberResults"] for task in tasks}
    kept = dict(server.rows("SELECT task_uuid, count(*) FROM images GROUP BY task_uuid"))
    assert kept == wanted
    calls = Counter(
        item["taskUUID"] for *_, body in listener.received for item in json.loads(body)["data"]
    )
    assert calls == {t["taskUUID"]: t["numberResults"] for t in tasks if "webhookURL" in t}
    listener.close()


async def cancel_or_leave(server: ServerProcess, number: int, rng: random.Random) -> None:
    """Send a task and be rid of it in one of four ways, after a short while."""
    task = make_task(steps=60, seed=number, numberResults=2)
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        match number % 4:
            case 0:  # the OpenAI form, and the client hangs up
                body = {"prompt": "a red fox", "size": "256x256", "steps": 60, "n": 2}
                with pytest.raises(httpx.TimeoutException):
                    await client.post(
                        f"{server.url}/v1/images/generations", json=body, timeout=rng.random()
                    )
            case 1:  # a socket that closes without a word, and the task is cancelled elsewhere
                async with connect(f"{server.url.replace('http', 'ws')}/v1", proxy=None) as socket:
                    await socket.send(json.dumps([{"taskType": "authentication", "apiKey": "x"}]))
                    await socket.recv()
                    await socket.send(json.dumps([task]))
                    await asyncio.sleep(rng.random())
                body = {"taskType": "cancelTask", "taskUUID": task["taskUUID"]}
                answer = await client.post(f"{server.url}/v1", json=[body])
                assert answer.json()["data"][0]["status"] == "cancelled"
            case _:  # polled, followed with previews, cancelled by its path
                await client.post(f"{server.url}/v1", json=[{**task, "deliveryMethod": "async"}])
                path = f"{server.url}/v1/tasks/{task['taskUUID']}"
                async with client.stream("GET", f"{path}/events?previews=1") as events:
                    await asyncio.sleep(rng.random())
                    answer = await client.delete(path)
                    assert answer.json()["data"][0]["status"] == "cancelled"
                    last = [line async for line in events.aiter_lines() if "event:" in line][-1]
                assert last == "event: cancelled"


def test_after_fifty_cancels_and_disconnects_nothing_is_left(
    server_factory: Callable[..., ServerProcess], tiny_checkpoint: Path
) -> None:
    server = server_factory(tiny_checkpoint, HYIMAGE_WORKER__NUM_THREADS="1")
    server.start()

    async def scenario(numbers: range) -> None:
        rng = random.Random(3)
        async with asyncio.timeout(240):
            await asyncio.gather(*(cancel_or_leave(server, n, rng) for n in numbers))

    asyncio.run(scenario(range(NUM_WARM)))  # pools, threads, allocator
    running = "SELECT count(*) FROM tasks WHERE status = 'running'"
    wait_until(lambda: server.rows(running) == [(0,)])
    files, memory = measure(server)
    asyncio.run(scenario(range(NUM_WARM, NUM_WARM + NUM_CANCELS)))
    wait_until(lambda: server.rows(running) == [(0,)])
    wait_until(lambda: measure(server)[0] <= files + 5)  # sockets close in their own time
    assert measure(server)[1] <= memory + 64
    codes = server.rows("SELECT DISTINCT json_extract(error, '$.code') FROM tasks")
    assert codes == [("taskCancelled",)]
    images = server.rows("SELECT name FROM images")
    kept = {path.name for path in (server.folder / "images").rglob("*.*")}
    assert {name for (name,) in images} == kept
    done = server.post(make_task(seed=1))  # and it still generates
    assert [item["seed"] for item in done["data"]] == [1]
