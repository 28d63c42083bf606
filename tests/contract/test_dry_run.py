"""Dry runs: tasks are checked and priced, and nothing is generated."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.contract.conftest import FakeEngine, ask, make_task


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/v1", {"X-Runware-Dry-Run": "1"}), ("/v1?dryRun=1", {}), ("/v1/?sdk=js&dryRun=true", {})],
)
def test_a_dry_run_is_priced_and_not_generated(
    client: TestClient, engine: FakeEngine, path: str, headers: dict[str, str]
) -> None:
    task = make_task(width=1536, height=512, steps=32, numberResults=2)
    answer = client.post(path, json=[task], headers=headers)
    assert answer.status_code == 200
    (item,) = answer.json()["data"]
    assert item.keys() == {"taskType", "taskUUID", "cost"}
    assert item["cost"] == pytest.approx(2 * 0.1453, rel=0.006)
    assert engine.jobs == []
    poll = {"taskType": "getResponse", "taskUUID": task["taskUUID"]}
    assert client.post("/v1", json=[poll]).status_code == 404
    assert client.post("/v1", json=[task]).status_code == 200  # its UUID is free


@pytest.mark.parametrize("changes", [{"steps": 0}, {"model": "other"}, {"width": 512}])
def test_a_dry_run_finds_the_same_faults(
    client: TestClient, engine: FakeEngine, changes: dict[str, Any]
) -> None:
    task = make_task(**changes)
    dry, real = client.post("/v1?dryRun=1", json=[task]), client.post("/v1", json=[task])
    assert dry.status_code == 400
    assert dry.json() == real.json()


def test_without_a_size_there_is_a_price_too(client: TestClient) -> None:
    (item,) = client.post("/v1?dryRun=1", json=[make_task(webhookURL=None)]).json()["data"]
    assert item["cost"] > 0


def test_dryrun_0_generates(client: TestClient, engine: FakeEngine) -> None:
    client.post("/v1?dryRun=0", json=[make_task()])
    assert len(engine.jobs) == 1


@pytest.mark.parametrize(
    ("path", "headers"), [("/v1?dryRun=1", {}), ("/v1", {"X-Runware-Dry-Run": "1"})]
)
def test_a_socket_can_be_for_dry_runs(
    client: TestClient, engine: FakeEngine, path: str, headers: dict[str, str]
) -> None:
    with client.websocket_connect(path, headers=headers) as socket:
        ask(socket, {"taskType": "authentication", "apiKey": "any"})
        (item,) = ask(socket, make_task(deliveryMethod="async"))["data"]
        assert item["cost"] > 0
        assert ask(socket, make_task(steps=0))["errors"][0]["code"] == "invalidSteps"
    assert engine.jobs == []
