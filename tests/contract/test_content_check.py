"""Content checking on the wire: admitted with a detector, refused without one."""

import pytest
from fastapi.testclient import TestClient

from server.app import create_app
from server.delivery.safety import SafetyChecker
from server.settings import Settings
from tests.contract.conftest import FakeEngine, change, make_task, refusal

WANTED = [{"safety": {"checkContent": True}}, {"safety": {"mode": "fast"}}, {"checkNSFW": True}]


class EvenDetector:
    """Says of every other seed that its image is NSFW."""

    def is_nsfw(self, encoded: bytes) -> bool:
        return int(encoded.removeprefix(b"image ")) % 2 == 0


@pytest.mark.parametrize("wanted", WANTED)
def test_results_hold_what_the_detector_found(
    settings: Settings, engine: FakeEngine, wanted: dict[str, object]
) -> None:
    app = create_app(settings, engine, safety=SafetyChecker(EvenDetector()))
    with TestClient(app) as client:
        body = client.post("/v1", json=[make_task(seed=4, numberResults=2, **wanted)]).json()
        assert [item["NSFWContent"] for item in body["data"]] == [True, False]
        (item,) = client.post("/v1", json=[make_task()]).json()["data"]
        assert "NSFWContent" not in item


@pytest.mark.parametrize("wanted", WANTED)
def test_a_check_that_cannot_be_made_is_refused_at_admission(
    settings: Settings, engine: FakeEngine, wanted: dict[str, object]
) -> None:
    unchecked = change(settings, safety__checker="none")
    with TestClient(create_app(unchecked, engine)) as client:
        error = refusal(client, **wanted)
        assert (error["code"], error["parameter"]) == ("unsupportedSafetyCheck", "safety")
        assert "safety.checker" in error["message"]
        assert client.post("/v1", json=[make_task()]).status_code == 200
    assert len(engine.jobs) == 1
