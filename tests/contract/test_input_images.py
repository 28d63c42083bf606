"""Images in: where they are taken, in which forms, and what becomes of them."""

import base64
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from fastapi.testclient import TestClient

from server.app import create_app
from server.settings import Settings
from server.tasks.input_images import MAX_FETCHES
from tests.contract.conftest import FakeEngine, change, data_uri, make_task, picture, refusal
from tests.contract.test_words import change_checkpoint
from tests.listener import Listener
from tests.waiting import wait_until


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


def edited(client: TestClient, **changes: Any) -> list[dict[str, Any]]:
    response = client.post("/v1", json=[make_task(**changes)])
    assert response.status_code == 200, response.text
    items: list[dict[str, Any]] = response.json()["data"]
    return items


def uploaded(client: TestClient, content: bytes) -> dict[str, Any]:
    upload = {"taskType": "imageUpload", "image": data_uri(content)}
    item: dict[str, Any] = client.post("/v1", json=[upload]).json()["data"][0]
    return item


def stored_files(settings: Settings) -> list[str]:
    return sorted(file.name for file in Path(settings.images.store).glob("input-*"))


def facts(client: TestClient) -> tuple[Any, Any, Any]:
    search = {"taskType": "modelSearch"}
    (model,) = client.post("/v1", json=[search]).json()["data"][0]["results"]
    pages = (client.get("/ready"), client.get("/page/config.json"))
    return (model["maxInputImages"], *(page.json()["maxInputImages"] for page in pages))


def test_readiness_the_model_search_and_the_page_say_how_many_images_are_taken(
    editor: TestClient,
) -> None:
    assert facts(editor) == (3, 3, 3)


@pytest.mark.parametrize(
    ("template", "has_setting", "reason"),
    [("pretrain", True, "Instruct"), ("instruct", False, "worker.image_inputs = true")],
)
@pytest.mark.parametrize("changes", [{"seedImage": "x"}, {"referenceImages": ["x"]}])
def test_no_images_are_taken_without_an_instruct_checkpoint_and_the_setting(
    settings: Settings,
    engine: FakeEngine,
    template: str,
    has_setting: bool,
    reason: str,
    changes: dict[str, Any],
) -> None:
    change_checkpoint(settings, "generation_config.json", sequence_template=template)
    with TestClient(create_app(change(settings, worker__image_inputs=has_setting), engine)) as one:
        assert facts(one) == (0, 0, 0)
        error = refusal(one, **changes)
        assert (error["code"], [error["parameter"]]) == ("unsupportedParameter", [*changes])
        assert reason in error["message"]
        assert refusal(one, hunyuan={"align": True})["code"] == "incompatibleParameters"
    assert engine.jobs == []


def test_an_image_may_be_a_uuid_a_url_a_data_uri_or_base64(
    editor: TestClient, engine: FakeEngine, listener: Listener
) -> None:
    first, second, third = (picture(shade) for shade in (1, 2, 3))
    listener.content = third
    references = [uploaded(editor, first)["imageUUID"].upper(), data_uri(second)]
    edited(editor, referenceImages=[*references, f"{listener.url}/a.png?b=%2F"])
    edited(editor, seedImage=base64.b64encode(third).decode())
    edited(editor, seedImage=uploaded(editor, first)["imageURL"])
    wrapped = base64.encodebytes(second).decode()
    edited(editor, referenceImages=[wrapped], hunyuan={"align": True})
    requests = [job.request for job in engine.jobs]
    assert [request.images for request in requests] == [
        (first, second, third), (third,), (first,), (second,)
    ]  # fmt: skip
    assert [request.align for request in requests] == [False, False, False, True]
    assert listener.received == [("GET", "/a.png?b=%2F", "", b"")]
    assert "png" not in repr(engine.jobs[0]).lower().replace("image_format='jpg'", "")


def test_the_seed_image_is_the_first_and_inputs_are_parameters_too(
    editor: TestClient, engine: FakeEngine
) -> None:
    first, second = picture(1), picture(2)
    sent = {"referenceImages": [data_uri(second)], "seedImage": data_uri(first)}
    edited(editor, **sent)
    edited(editor, inputs=sent)
    edited(editor, inputs={"seedImage": sent["seedImage"]}, referenceImages=[data_uri(second)])
    assert [job.request.images for job in engine.jobs] == [(first, second)] * 3
    error = refusal(editor, inputs=sent, seedImage=sent["seedImage"])
    assert (error["code"], error["parameter"]) == ("unsupportedParameter", "inputs")


def test_an_image_drawn_here_can_be_edited(editor: TestClient, engine: FakeEngine) -> None:
    engine.encoded = picture(9, "JPEG")
    (drawn,) = edited(editor)
    edited(editor, seedImage=drawn["imageUUID"])
    assert engine.jobs[-1].request.images == (engine.encoded,)


def test_more_than_three_images_are_refused(editor: TestClient, engine: FakeEngine) -> None:
    image = data_uri(picture())
    error = refusal(editor, referenceImages=[image] * 4)
    assert (error["code"], error["parameter"]) == ("invalidReferenceImages", "referenceImages")
    assert "array of 1 to 3 images, not of 4" in error["message"]
    error = refusal(editor, referenceImages=[image] * 3, seedImage=image)
    assert error["parameter"] == ["referenceImages", "seedImage"]
    assert "Leave 1 out" in error["message"]
    assert engine.jobs == []


def test_a_prompt_without_room_for_its_images_is_refused_with_the_number_of_tokens(
    editing: Settings, engine: FakeEngine
) -> None:
    change_checkpoint(editing, "config.json", max_position_embeddings=5000)
    with TestClient(create_app(editing, engine)) as client:
        edited(client)
        error = refusal(client, referenceImages=[data_uri(picture())])
    assert (error["code"], error["parameter"]) == ("promptTooLong", "positivePrompt")
    assert "1 input images" in error["message"]


def test_a_stored_task_names_its_images_and_details_show_what_was_sent(
    editor: TestClient, editing: Settings, engine: FakeEngine
) -> None:
    first, second = picture(1), picture(2)
    wrapped = base64.encodebytes(second).decode()
    known = uploaded(editor, first)["imageUUID"]
    tasks = [
        make_task(seedImage=data_uri(first), referenceImages=[wrapped, known]),
        make_task(inputs={"referenceImages": [base64.b64encode(first).decode()]}, seedImage=None),
    ]
    for task in tasks:
        editor.post("/v1", json=[task])
        details = {"taskType": "getTaskDetails", "taskUUID": task["taskUUID"]}
        (item,) = editor.post("/v1", json=[details]).json()["data"]
        assert item["request"] == [task]
    database = editing.tasks.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT request, inputs FROM tasks").fetchall()
    assert base64.b64encode(first).decode() not in str(rows)
    assert len(stored_files(editing)) == 2  # equal images lie there once
    (name, *_) = stored_files(editing)
    assert editor.get(f"/images/{name}").status_code == 404


def test_the_bytes_outlive_their_time_while_a_task_runs_and_no_longer(
    editing: Settings, engine: FakeEngine
) -> None:
    quick = change(editing, tasks__sweep_every_s=0.02)
    database = quick.tasks.database_url.removeprefix("sqlite:///")
    engine.is_held = True
    with TestClient(create_app(quick, engine)) as client:
        task = make_task(seedImage=data_uri(picture(1)), deliveryMethod="async")
        client.post("/v1", json=[task])
        (other,) = edited(client, seedImage=data_uri(picture(2)), deliveryMethod="async")
        cancel = {"taskType": "cancelTask", "taskUUID": other["taskUUID"]}
        client.post("/v1", json=[cancel])
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("UPDATE inputs SET expires_at = 1")
        wait_until(lambda: len(stored_files(quick)) == 1)
        engine.is_held = False
        wait_until(lambda: stored_files(quick) == [])
        poll = {"taskType": "getTaskDetails", "taskUUID": task["taskUUID"]}
        (item,) = client.post("/v1", json=[poll]).json()["data"]
        assert item["request"][0]["seedImage"] == "data:image/png;base64,(expired)"
        edited(client, seedImage=data_uri(picture(1)))
        assert engine.jobs[-1].request.images == (picture(1),)


def test_a_task_that_runs_again_gets_the_bytes_that_were_fetched_once(
    editing: Settings, engine: FakeEngine, listener: Listener
) -> None:
    listener.content = picture(1)
    engine.is_held = True
    task = make_task(referenceImages=[f"{listener.url}/a"], deliveryMethod="async")
    with TestClient(create_app(editing, engine)) as client:
        client.post("/v1", json=[task])
    listener.content = picture(2)
    later = FakeEngine()
    with TestClient(create_app(editing, later)):
        wait_until(lambda: later.jobs != [])
    assert later.jobs[0].request.images == (picture(1),)
    assert len(listener.received) == 1


@pytest.mark.parametrize(
    ("task_type", "parameter"), [("imageUpload", "image"), ("mediaStorage", "media")]
)
def test_an_upload_may_be_a_url_and_is_checked_as_an_input_image_is(
    editor: TestClient, listener: Listener, task_type: str, parameter: str
) -> None:
    def upload(image: str) -> Any:
        answer = editor.post("/v1", json=[{"taskType": task_type, parameter: image}]).json()
        return answer.get("error") or answer["data"][0]

    listener.content = picture(3, "WEBP")
    kept = upload(f"{listener.url}/a")
    assert kept[f"{parameter}URL"].endswith(".webp")
    assert editor.get(kept[f"{parameter}URL"]).content == listener.content
    code = f"invalid{parameter.capitalize()}"
    for image, reason in (
        ("http://10.0.0.1/a.png", "egress.allowed_networks"),
        (base64.b64encode(picture(1)[:60]).decode(), "damaged or cut short"),
        (base64.b64encode(picture(1, "GIF")).decode(), "PNG, JPEG or WEBP"),
        ("cat.png", "not base64 text"),
    ):
        error = upload(image)
        assert (error["code"], error["parameter"]) == (code, parameter)
        assert reason in error["message"]


def test_the_files_of_unfinished_tasks_have_a_limit(editing: Settings, engine: FakeEngine) -> None:
    engine.is_held = True
    few = change(editing, inputs__max_queued_bytes=len(picture()) + 1)
    with TestClient(create_app(few, engine)) as client:
        task = make_task(seedImage=data_uri(picture()), deliveryMethod="async")
        assert client.post("/v1", json=[task]).status_code == 200
        again = client.post("/v1", json=[make_task(seedImage=data_uri(picture()))])
        assert (again.status_code, again.json()["error"]["code"]) == (429, "rateLimitExceeded")
        engine.is_held = False


def test_an_image_in_costs_the_share_of_its_tokens(editor: TestClient, engine: FakeEngine) -> None:
    def cost(**changes: Any) -> float:
        (item,) = edited(editor, includeCost=True, width=1024, height=1024, **changes)
        return float(item["cost"])

    image = data_uri(picture(size=(30, 30)))
    one = cost(seedImage=image) - cost()
    # 4096 tokens of the VAE, 64 of this checkpoint's tower, 6 others; a token for 16x16 pixels.
    megapixels = (4096 + 64 + 6) * 256 / 1e6
    assert one == pytest.approx(0.5 * 0.00538 * (megapixels + 0.1 * megapixels**2), abs=1e-4)
    assert cost(referenceImages=[image] * 3) - cost() == pytest.approx(3 * one, abs=3e-4)
    task = make_task(seedImage=image, numberResults=2, width=1024, height=1024)
    (estimate,) = editor.post("/v1?dryRun=1", json=[task]).json()["data"]
    assert estimate["cost"] == pytest.approx(2 * cost(seedImage=image), abs=1e-4)
    wrong = editor.post("/v1?dryRun=1", json=[{**task, "seedImage": "x"}])
    assert wrong.status_code == 400


def test_a_task_that_holds_its_images_does_not_wait_for_the_silent_hosts_of_others(
    editing: Settings, engine: FakeEngine, listener: Listener
) -> None:
    listener.is_silent = True
    patient = change(editing, inputs__fetch_timeout_s=120.0)
    refusals: list[dict[str, Any]] = []
    with TestClient(create_app(patient, engine)) as client:
        slow = {"seedImage": f"{listener.url}/slow"}
        waiting = [
            Thread(target=lambda: refusals.append(refusal(client, **slow)))
            for _ in range(MAX_FETCHES)
        ]
        for thread in waiting:
            thread.start()
        wait_until(lambda: listener.num_silent == MAX_FETCHES)
        assert edited(client, seedImage=data_uri(picture()))
        assert refusals == []
        listener.hang_up()
        for thread in waiting:
            thread.join()
    assert {error["parameter"] for error in refusals} == {"seedImage"}
    assert all("did not answer" in error["message"] for error in refusals)
