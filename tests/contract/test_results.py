"""Results: seeds, forms, cost, image URLs and their expiry."""

import base64
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from server.app import create_app
from server.settings import Settings
from tests.contract.conftest import FakeEngine, change, make_task
from tests.waiting import wait_until

TINY_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)


def test_each_result_has_its_own_seed_and_uuid(client: TestClient) -> None:
    data = client.post("/v1", json=[make_task(seed=5, numberResults=3)]).json()["data"]
    assert [item["seed"] for item in data] == [5, 6, 7]
    assert len({item["imageUUID"] for item in data}) == 3


@pytest.mark.parametrize("form", ["URL", "base64Data", "dataURI"])
def test_an_image_comes_in_exactly_the_form_asked_for(client: TestClient, form: str) -> None:
    (item,) = client.post(
        "/v1", json=[make_task(outputType=form, outputFormat="png", seed=1)]
    ).json()["data"]
    keys = {"URL": "imageURL", "base64Data": "imageBase64Data", "dataURI": "imageDataURI"}
    assert {key for key in item if key.startswith("image") and key != "imageUUID"} == {keys[form]}
    value = item[keys[form]]
    if form == "URL":
        assert value == f"http://example.test:8000/images/{item['imageUUID']}.png"
        image = client.get(value)
        assert (image.content, image.headers["content-type"]) == (b"image 1", "image/png")
    else:
        prefix = "data:image/png;base64," if form == "dataURI" else ""
        assert value.startswith(prefix)
        assert base64.b64decode(value.removeprefix(prefix)) == b"image 1"


def test_several_forms_can_be_asked_for_at_once(client: TestClient) -> None:
    (item,) = client.post("/v1", json=[make_task(outputType=["URL", "dataURI"])]).json()["data"]
    assert {"imageURL", "imageDataURI"} <= item.keys()


@pytest.mark.parametrize(
    "name",
    [
        "x.png",
        "..%2f..%2fetc%2fpasswd",
        "995dcd6c-eb7c-4dab-b7a8-0750324d78ac.png",
        "48865951-735f-4f68-b6dc-0d29616484b9.exe",
    ],
)
def test_an_image_that_is_not_there_is_404(client: TestClient, name: str) -> None:
    assert client.get(f"/images/{name}").status_code == 404


@pytest.mark.parametrize(
    ("size", "steps", "cost"),
    [
        ((1536, 512), 32, 0.1453),
        ((1280, 768), 30, 0.1735),
        ((1472, 576), 30, 0.1491),
        ((1344, 704), 30, 0.1671),
    ],
)
def test_the_default_prices_are_those_of_the_published_examples(
    client: TestClient, size: tuple[int, int], steps: int, cost: float
) -> None:
    task = make_task(width=size[0], height=size[1], steps=steps, includeCost=True)
    (item,) = client.post("/v1", json=[task]).json()["data"]
    assert item["cost"] == pytest.approx(cost, rel=0.006)


def test_an_image_is_gone_when_its_time_is_over(settings: Settings, engine: FakeEngine) -> None:
    upload = {"taskType": "imageUpload", "image": f"data:image/png;base64,{TINY_PNG}"}
    database = settings.tasks.database_url.removeprefix("sqlite:///")
    with TestClient(create_app(change(settings, tasks__sweep_every_s=0.05), engine)) as client:
        (sent,) = client.post("/v1", json=[upload]).json()["data"]
        (generated,) = client.post("/v1", json=[make_task(ttl=60)]).json()["data"]
        urls = [sent["imageURL"], generated["imageURL"]]
        assert [client.get(url).status_code for url in urls] == [200, 200]
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("UPDATE images SET expires_at = 1")
        assert [client.get(url).status_code for url in urls] == [404, 404]
        store = Path(settings.images.store)
        wait_until(lambda: not [f for f in store.rglob("*") if f.is_file()])
