"""Input images that cannot be used: each is refused by name, whatever is wrong with it."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from server.app import create_app
from tests.contract.conftest import FakeEngine, change, make_editing, make_settings, refusal
from tests.contract.malformed_images import ANSWERS, TEXTS, good_image, in_base64
from tests.listener import Listener


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory, engine: FakeEngine) -> Iterator[TestClient]:
    settings = make_editing(make_settings(tmp_path_factory.mktemp("editor")))
    settings = change(settings, inputs__max_bytes=50_000, inputs__fetch_timeout_s=1.0)
    with TestClient(create_app(settings, engine), base_url="http://example.test:8000") as client:
        yield client


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


def check(client: TestClient, engine: FakeEngine, image: object, reason: str) -> None:
    """Send an image as the second of a task; its error must name it, and say why."""
    error = refusal(client, referenceImages=[in_base64(good_image()), image])
    assert error["code"] == "invalidReferenceImages", error
    assert error["parameter"] == "referenceImages[1]"
    assert error["documentation"].endswith("#request-referenceimages")
    message = error["message"]
    assert message.startswith("Invalid value for 'referenceImages[1]' parameter. ")
    assert reason in message, message
    assert " Got " in message
    assert len(message) < 600
    assert not [word for word in ("None", "Traceback", "object at 0x") if word in message]
    assert engine.jobs == []


@pytest.mark.parametrize("case", TEXTS)
def test_an_image_that_cannot_be_used_is_refused_by_its_place(
    editor: TestClient, engine: FakeEngine, case: str
) -> None:
    check(editor, engine, *TEXTS[case])


@pytest.mark.parametrize("case", ANSWERS)
def test_a_url_that_leads_to_no_image_is_refused_by_its_place(
    editor: TestClient, engine: FakeEngine, listener: Listener, case: str
) -> None:
    answer = ANSWERS[case]
    listener.num_failures = 1 if answer.status != 200 else 0
    listener.failure_status = answer.status
    listener.content, listener.answer_headers = answer.content, answer.headers
    listener.is_silent = answer.is_silent
    check(editor, engine, f"{listener.url}/image.png", answer.reason)


def test_there_are_at_least_fifty_of_them() -> None:
    assert len(TEXTS) + len(ANSWERS) >= 50
