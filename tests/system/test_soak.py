"""Many small tasks over many connections of both kinds: none lost, nothing left behind."""

import asyncio
import json
import sqlite3
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

pytestmark = pytest.mark.slow

NUM_TASKS, NUM_CONNECTIONS = 200, 20


def make_task() -> dict[str, Any]:
    return {
        "taskType": "imageInference",
        "taskUUID": str(uuid.uuid4()),
        "model": "runware:180@1",
        "positivePrompt": "a red fox",
        "width": 384,
        "height": 128,
        "steps": 1,
        "outputFormat": "JPG",
    }


async def over_http(url: str, count: int) -> list[str]:
    async with httpx.AsyncClient(timeout=300, trust_env=False) as client:
        done = []
        for _ in range(count):
            answer = await client.post(f"{url}/v1", json=[make_task()])
            answer.raise_for_status()
            done += [item["taskUUID"] for item in answer.json()["data"]]
        return done


async def over_socket(url: str, count: int) -> list[str]:
    async with connect(f"{url.replace('http', 'ws')}/v1", proxy=None) as socket:
        await socket.send(json.dumps([{"taskType": "authentication", "apiKey": "any"}]))
        await socket.recv()
        await socket.send(json.dumps([make_task() for _ in range(count)]))
        frames = [json.loads(await socket.recv()) for _ in range(count)]
        return [frame["data"][0]["taskUUID"] for frame in frames]


async def soak(url: str, num_tasks: int) -> list[str]:
    each = num_tasks // NUM_CONNECTIONS
    kinds = [over_http, over_socket] * (NUM_CONNECTIONS // 2)
    batches = await asyncio.gather(*(kind(url, each) for kind in kinds))
    return [task_uuid for batch in batches for task_uuid in batch]


def measure(server: Any) -> tuple[int, float]:
    """Return open files of the server and its worker, and their memory in MiB."""
    pids = [server.process.pid, *server.children()]
    files = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return files, pages * 4096 / 2**20


def test_many_tasks_over_many_connections_lose_and_leak_nothing(shared_server: Any) -> None:
    asyncio.run(soak(shared_server.url, NUM_CONNECTIONS))  # warm: pools, threads, allocator
    files, memory = measure(shared_server)
    done = asyncio.run(asyncio.wait_for(soak(shared_server.url, NUM_TASKS), 400))
    assert len(set(done)) == NUM_TASKS
    files_after, memory_after = measure(shared_server)
    assert files_after <= files + 5
    assert memory_after <= memory + 64
    with sqlite3.connect(shared_server.folder / "tasks.db") as database:
        rows = database.execute("SELECT task_uuid, status FROM tasks").fetchall()
        images = database.execute("SELECT task_uuid FROM images").fetchall()
    database.close()
    status = dict(rows)
    assert {status[task_uuid] for task_uuid in done} == {"success"}
    assert set(Counter(image for (image,) in images).values()) == {1}
    assert "hyimage_running_tasks 0.0" in shared_server.get("/metrics")[0].decode()
