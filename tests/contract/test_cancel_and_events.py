"""Cancelling a task and following its events, on both transports, with a fake engine."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from server.engine.messages import Job, JobEvent, JobQueued, JobStarted, JobStep
from server.settings import Settings
from tests.contract.conftest import FakeEngine, ask, make_task, tasks_of
from tests.waiting import wait_until

UNKNOWN = "00000000-0000-4000-8000-000000000000"


def start(client: TestClient, **changes: Any) -> str:
    """Send a task to be polled; return its UUID."""
    task = make_task(deliveryMethod="async", **changes)
    assert client.post("/v1", json=[task]).status_code == 200
    return str(task["taskUUID"])


def events(client: TestClient, task_uuid: str, **headers: str) -> list[tuple[str, str, Any]]:
    """Return id, kind and values of every event of a task, to its end."""
    response = client.get(f"/v1/tasks/{task_uuid}/events", headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return list(parse(response.text))


def parse(text: str) -> Iterator[tuple[str, str, Any]]:
    for block in filter(None, text.split("\n\n")):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if fields:
            yield fields.get("id", ""), fields["event"], json.loads(fields["data"])


def test_a_waiting_task_is_cancelled_and_ends_once_as_cancelled(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.is_held = True
    task_uuid = start(client)
    response = client.delete(f"/v1/tasks/{task_uuid}")
    assert response.json() == {
        "data": [{"taskType": "cancelTask", "taskUUID": task_uuid, "status": "cancelled"}]
    }
    poll = client.post("/v1", json=[{"taskType": "getResponse", "taskUUID": task_uuid}])
    assert poll.status_code == 200
    assert [error["code"] for error in poll.json()["errors"]] == ["taskCancelled"]
    assert tasks_of(client).num_running_tasks == 0


def test_cancelling_again_or_after_the_end_says_how_it_ended(
    client: TestClient, engine: FakeEngine
) -> None:
    done = make_task()
    client.post("/v1", json=[done])
    assert client.delete(f"/v1/tasks/{done['taskUUID']}").json()["data"][0]["status"] == "success"
    engine.is_held = True
    task_uuid = start(client)
    for _ in range(2):
        item = client.delete(f"/v1/tasks/{task_uuid}").json()["data"][0]
        assert item["status"] == "cancelled"
    engine.is_held = False
    engine.failure = ("inferenceError", "died")
    failed = start(client)
    wait_until(lambda: tasks_of(client).num_running_tasks == 0)
    assert client.delete(f"/v1/tasks/{failed}").json()["data"][0]["status"] == "failed"


def test_cancel_task_works_on_http_and_on_a_socket(client: TestClient, engine: FakeEngine) -> None:
    engine.is_held = True
    first, second = start(client), start(client)
    body = {"taskType": "cancelTask", "taskUUID": first}
    assert client.post("/v1", json=[body]).json()["data"][0]["status"] == "cancelled"
    with client.websocket_connect("/v1") as socket:
        ask(socket, {"taskType": "authentication", "apiKey": "any"})
        item = ask(socket, {"taskType": "cancelTask", "taskUUID": second})["data"][0]
        assert item == {"taskType": "cancelTask", "taskUUID": second, "status": "cancelled"}


def test_a_waiting_client_gets_the_error_of_its_cancelled_task(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.is_held = True
    task = make_task()
    with client.websocket_connect("/v1") as socket:
        ask(socket, {"taskType": "authentication", "apiKey": "any"})
        socket.send_text(json.dumps([task]))
        wait_until(lambda: tasks_of(client).num_running_tasks == 1)
        assert client.delete(f"/v1/tasks/{task['taskUUID']}").status_code == 200
        frame = socket.receive_json()
    assert frame["errors"][0]["code"] == "taskCancelled"
    assert frame["errors"][0]["taskUUID"] == task["taskUUID"]


@pytest.mark.parametrize("method", ["delete", "get"])
def test_an_unknown_task_has_neither_events_nor_an_end(client: TestClient, method: str) -> None:
    path = f"/v1/tasks/{UNKNOWN}" + ("/events" if method == "get" else "")
    response = client.request(method, path)
    assert response.status_code == 404
    assert response.json()["errors"][0]["code"] == "taskFailedOrNotFound"


def test_another_key_can_neither_follow_nor_cancel(
    settings: Settings, engine: FakeEngine, new_client: Callable[..., TestClient]
) -> None:
    client = new_client(settings, engine, keys=("one", "two"))
    engine.is_held = True
    task = make_task(deliveryMethod="async")
    client.post("/v1", json=[task], headers={"Authorization": "Bearer one"})
    path = f"/v1/tasks/{task['taskUUID']}"
    for headers, status in (
        ({"Authorization": "Bearer two"}, 404),
        ({"Authorization": "Bearer three"}, 401),
        ({}, 401),
    ):
        assert client.delete(path, headers=headers).status_code == status
        assert client.get(f"{path}/events", headers=headers).status_code == status
    assert tasks_of(client).num_running_tasks == 1


def test_the_events_of_a_task_are_its_whole_story(client: TestClient) -> None:
    task_uuid = start(client, numberResults=2)
    wait_until(lambda: tasks_of(client).num_running_tasks == 0)
    got = events(client, task_uuid)
    assert [kind for _, kind, _ in got] == ["step", "image", "step", "image", "done"]
    images = [values for _, kind, values in got if kind == "image"]
    assert all(values["status"] == "success" and values["imageURL"] for values in images)
    assert len({values["imageUUID"] for values in images}) == 2
    steps = [values for _, kind, values in got if kind == "step"]
    assert [values["image"] for values in steps] == [0, 1]
    assert {"step", "numSteps", "reused", "progress", "estimatedSeconds"} <= set(steps[0])


def test_a_client_that_comes_back_gets_what_it_missed(client: TestClient) -> None:
    task_uuid = start(client)
    wait_until(lambda: tasks_of(client).num_running_tasks == 0)
    first = events(client, task_uuid)
    rest = events(client, task_uuid, **{"Last-Event-ID": first[0][0]})
    assert rest == first[1:]


def test_the_events_of_a_task_of_another_life_come_from_the_store(
    settings: Settings, engine: FakeEngine, new_client: Callable[..., TestClient]
) -> None:
    client = new_client(settings, engine)
    task_uuid = start(client)
    wait_until(lambda: tasks_of(client).num_running_tasks == 0)
    client.__exit__(None, None, None)
    again = new_client(settings, engine)
    assert [kind for _, kind, _ in events(again, task_uuid)] == ["image", "done"]


def test_queue_position_start_and_previews_are_told_as_they_come(
    client: TestClient, engine: FakeEngine
) -> None:
    def story(job: Job) -> list[JobEvent]:
        one = JobStep(job_id=job.job_id, image=0, step=1, num_steps=2, preview=b"p", seconds=0.5)
        two = JobStep(job_id=job.job_id, image=0, step=2, num_steps=2, is_reused=True, seconds=0.5)
        return [
            JobQueued(job_id=job.job_id, position=3),
            JobQueued(job_id=job.job_id, position=1),
            JobStarted(job_id=job.job_id, has_previews=True),
            one,
            two,
        ]

    engine.story = story
    task_uuid = start(client, steps=2, outputFormat="PNG")
    wait_until(lambda: tasks_of(client).num_running_tasks == 0)
    got = events(client, task_uuid)
    assert [kind for _, kind, _ in got] == ["queued", "started", "step", "step", "image", "done"]
    assert got[0][2]["position"] == 1
    assert got[1][2]["hasPreviews"] is True
    assert [values["reused"] for _, kind, values in got if kind == "step"] == [False, True]
    response = client.get(f"/v1/tasks/{task_uuid}/events?previews=1")
    preview = next(v for _, kind, v in parse(response.text) if kind == "preview")
    assert preview["dataURI"] == "data:image/png;base64,cA=="


def test_following_with_previews_asks_the_engine_for_them(
    client: TestClient, engine: FakeEngine
) -> None:
    task_uuid = start(client)
    client.get(f"/v1/tasks/{task_uuid}/events?previews=1")
    assert task_uuid in engine.previewed


def test_a_full_queue_says_when_there_will_be_room(client: TestClient, engine: FakeEngine) -> None:
    def slow(job: Job) -> list[JobEvent]:
        return [JobStep(job_id=job.job_id, image=0, step=1, num_steps=4, seconds=2.0)]

    engine.story = slow
    client.post("/v1", json=[make_task(steps=4)])
    engine.is_held = True
    start(client, steps=4, numberResults=20)
    refused = client.post("/v1", json=[make_task(steps=4, numberResults=20)])
    assert refused.status_code == 429
    assert refused.headers["Retry-After"] == "160"  # 20 images of 4 steps of 2 s
    assert refused.json()["errors"][0]["retryAfter"] == 160
    form = {"prompt": "a red fox", "n": 20}
    assert client.post("/v1/images/generations", json=form).headers["Retry-After"] == "160"
