"""A part that blocks its threads holds up its own tasks, not the look-up of others."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from server.app import create_app
from server.delivery.images import ImageStore
from server.delivery.safety import SafetyChecker
from server.settings import Settings
from tests.contract.conftest import FakeEngine, change, make_task
from tests.waiting import wait_until

NUM_THREADS = ThreadPoolExecutor()._max_workers  # as many as asyncio.to_thread has
ANSWER_S = 20.0


class Gate:
    """Holds threads until it is opened."""

    def __init__(self) -> None:
        self.num_held = 0
        self._is_open = threading.Event()

    def pass_through(self) -> None:
        self.num_held += 1
        self._is_open.wait()

    def open(self) -> None:
        self._is_open.set()


class BlockedStore(ImageStore):
    """One whose connections hang, as those to S3 may."""

    def __init__(self, url: str, gate: Gate) -> None:
        super().__init__(url)
        self._gate = gate

    def _write(self, name: str, encoded: bytes) -> None:
        self._gate.pass_through()


class BlockedDetector:
    """One that hangs."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def is_nsfw(self, encoded: bytes) -> bool:
        self._gate.pass_through()
        return False


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


def assert_a_task_is_found(client: TestClient, task: dict[str, Any]) -> None:
    """Poll a task, in a thread: an answer that never comes must fail, not hang."""
    answers: list[dict[str, Any]] = []

    def poll() -> None:
        body = [{"taskType": "getResponse", "taskUUID": task["taskUUID"]}]
        answers.append(client.post("/v1", json=body).json())

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    assert answers, "the poll waits behind the blocked part"
    assert answers[0]["data"][0]["status"] == "processing"


def test_a_poll_is_answered_while_every_thread_waits_for_the_image_store(
    settings: Settings, engine: FakeEngine, gate: Gate
) -> None:
    roomy = change(settings, server__max_queued_images=2 * NUM_THREADS)
    images = BlockedStore(settings.images.store, gate)
    with TestClient(create_app(roomy, engine, images=images)) as client:
        tasks = [make_task(deliveryMethod="async") for _ in range(NUM_THREADS + 3)]
        client.post("/v1", json=tasks)
        wait_until(lambda: gate.num_held == NUM_THREADS)
        try:
            assert_a_task_is_found(client, tasks[-1])
        finally:
            gate.open()


def test_a_poll_is_answered_while_the_content_checker_is_blocked(
    settings: Settings, engine: FakeEngine, gate: Gate
) -> None:
    safety = SafetyChecker(BlockedDetector(gate))
    with TestClient(create_app(settings, engine, safety=safety)) as client:
        tasks = [make_task(deliveryMethod="async", safety={"checkContent": True}) for _ in range(9)]
        client.post("/v1", json=tasks)
        wait_until(lambda: gate.num_held == 1)
        try:
            assert_a_task_is_found(client, tasks[-1])
        finally:
            gate.open()
