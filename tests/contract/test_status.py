"""`GET /v1/status`: what it shows, and to whom."""

import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import jsonschema
import pytest
from fastapi.testclient import TestClient

from server.api.status import list_devices, list_speeds
from server.engine.messages import (
    Job,
    JobEvent,
    JobFailed,
    JobQueued,
    JobStarted,
    JobStep,
    MemoryReading,
)
from server.engine.process_memory import tree_bytes
from server.engine.protocol import EngineFigures
from server.settings import Settings
from server.tasks.estimates import Estimates, Mode
from tests.contract.conftest import FakeEngine, change, make_task
from tests.waiting import until, wait_until


def status_of(client: TestClient, key: str | None = None) -> dict[str, Any]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    response = client.get("/v1/status", headers=headers)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def send(client: TestClient, key: str = "any", **changes: Any) -> str:
    task = make_task(deliveryMethod="async", **changes)
    client.post("/v1", json=[task], headers={"Authorization": f"Bearer {key}"})
    return str(task["taskUUID"])


def test_an_idle_server_has_nothing_to_do(client: TestClient, engine: FakeEngine) -> None:
    engine.figures = EngineFigures(resident_bytes=123)
    status = status_of(client)
    assert status["worker"] == {
        "ready": True, "description": "fake", "memoryBytes": 123, "devices": [], "deaths": 0,
    }  # fmt: skip
    assert status["model"] == "runware:180@1"
    assert status["tasks"] == status["speeds"] == []
    assert status["queue"] == {
        "running": 0, "queued": 0, "images": 0, "maxImages": 25, "otherKeys": 0,
        "estimatedSeconds": 0.0,
    }  # fmt: skip


def test_the_answer_is_as_described(client: TestClient, engine: FakeEngine) -> None:
    engine.is_held = True
    send(client)
    page = client.get("/openapi.json").json()
    content = page["paths"]["/v1/status"]["get"]["responses"]["200"]["content"]
    schema = {**content["application/json"]["schema"], "components": page["components"]}
    jsonschema.Draft202012Validator(schema).validate(status_of(client))


def test_a_waiting_task_is_listed_with_its_size_and_images(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.is_held = True
    task_uuid = send(client, numberResults=3, width=1536, height=512, steps=9)
    wait_until(lambda: status_of(client)["tasks"][0]["steps"] == 9)
    status = status_of(client)
    (task,) = status["tasks"]
    assert task.pop("ageSeconds") >= 0
    assert task == {
        "taskUUID": task_uuid, "status": "queued", "position": None, "progress": 0, "images": 3,
        "width": 1536, "height": 512, "steps": 9, "estimatedSeconds": None,
    }  # fmt: skip
    assert (status["queue"]["queued"], status["queue"]["images"]) == (1, 3)
    assert status["queue"]["estimatedSeconds"] is None  # nothing like it has run


class HaltingEngine(FakeEngine):
    """Starts the first job and halts after one step of 2 s; the others wait in its queue."""

    async def submit(self, job: Job) -> AsyncIterator[JobEvent]:
        self.jobs.append(job)
        if len(self.jobs) > 1:
            yield JobQueued(job_id=job.job_id, position=len(self.jobs) - 1)
        else:
            yield JobStarted(job_id=job.job_id)
            yield JobStep(job_id=job.job_id, image=0, step=1, num_steps=4, seconds=2.0)
        await until(lambda: self.is_stopped)
        yield JobFailed(job_id=job.job_id, code="serviceUnavailable", message="stopped")


def test_running_tasks_come_first_with_progress_and_what_is_left(
    settings: Settings, new_client: Callable[..., TestClient]
) -> None:
    client = new_client(change(settings, worker__max_active_jobs=1), HaltingEngine())
    runs = send(client, steps=4)
    wait_until(lambda: status_of(client)["tasks"][0]["progress"] == 25)
    next_one, last = send(client, steps=2), send(client, steps=1)
    wait_until(lambda: status_of(client)["queue"]["estimatedSeconds"] == 12.0)
    status = status_of(client)
    shown = [
        (task["taskUUID"], task["status"], task["position"], task["estimatedSeconds"])
        for task in status["tasks"]
    ]
    assert shown == [
        (runs, "running", 0, 6.0),
        (next_one, "queued", 1, 10.0),
        (last, "queued", 2, 12.0),
    ]
    assert (status["queue"]["running"], status["queue"]["queued"]) == (1, 2)
    assert [speed["secondsPerStep"] for speed in status["speeds"]] == [2.0]


def test_a_key_sees_its_own_tasks_and_counts_the_others(
    settings: Settings, engine: FakeEngine, new_client: Callable[..., TestClient]
) -> None:
    client = new_client(settings, engine, keys=("one", "two"))
    engine.is_held = True
    mine = send(client, "one")
    send(client, "two"), send(client, "two")
    status = status_of(client, "one")
    assert [task["taskUUID"] for task in status["tasks"]] == [mine]
    assert (status["queue"]["queued"], status["queue"]["otherKeys"]) == (3, 2)


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
def test_with_keys_set_the_status_needs_one(
    settings: Settings,
    engine: FakeEngine,
    new_client: Callable[..., TestClient],
    headers: dict[str, str],
) -> None:
    client = new_client(settings, engine, keys=("one",))
    response = client.get("/v1/status", headers=headers)
    assert response.status_code == 401
    assert response.json()["errors"][0]["code"] in ("missingApiKey", "invalidApiKey")


def test_speeds_are_by_mode_and_only_of_what_has_run() -> None:
    estimates = Estimates()
    large, small = (
        Mode(pixels, 2, cache, "Euler")
        for pixels, cache in ((2 << 20, "teaCache 0.5 None 2-18"), (1 << 20, "none None None 0-0"))
    )
    estimates.learn("step", large, 3.0)
    estimates.learn("step", small, 1.0)
    estimates.learn("decode", small, 0.5)
    estimates.learn("prefill", Mode(1, 1, "none None None 0-0", "Euler"), 9.0)
    first, second = list_speeds(estimates)
    assert (first["megapixels"], first["cache"], first["secondsPerDecode"]) == (1.049, "none", 0.5)
    assert (second["secondsPerStep"], second["cache"]) == (3.0, "teaCache 0.5 None 2-18")
    assert second["secondsPerDecode"] is None


def test_the_memory_of_devices_is_grouped_and_what_was_not_reported_is_null() -> None:
    readings = [
        MemoryReading("cuda:0", "allocated", 3), MemoryReading("cuda:1", "total", 9),
        MemoryReading("cuda:0", "total", 8), MemoryReading("cuda:0", "reserved", 4),
    ]  # fmt: skip
    assert list_devices(readings) == [
        {"device": "cuda:0", "allocatedBytes": 3, "peakBytes": None, "totalBytes": 8},
        {"device": "cuda:1", "allocatedBytes": None, "peakBytes": None, "totalBytes": 9},
    ]


def test_the_memory_of_a_process_is_more_than_nothing_and_unknown_once_it_has_ended() -> None:
    own = tree_bytes(os.getpid())
    assert own is not None
    assert own > 10 << 20
    assert tree_bytes(2**22 + 1) is None  # beyond Linux' largest process id
