"""Parameters of imageInference: accepted, defaulted, or refused by name with a code."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from server.runware.seeds import MAX_SEED
from tests.contract.conftest import FakeEngine, make_task, refusal

SEED_REQUESTS = json.loads((Path(__file__).parent / "seed_requests.json").read_text())


@pytest.mark.parametrize("request_body", SEED_REQUESTS)
def test_the_published_example_requests_are_accepted_unchanged(
    client: TestClient, engine: FakeEngine, request_body: dict[str, Any]
) -> None:
    response = client.post("/v1", json=[request_body])
    assert response.status_code == 200
    assert response.json().keys() == {"data"}
    (item,) = response.json()["data"]
    assert item["taskUUID"] == request_body["taskUUID"]
    assert item["seed"] == request_body["seed"]
    (job,) = engine.jobs
    assert (job.request.width_px, job.request.height_px) == (
        request_body["width"],
        request_body["height"],
    )
    assert (job.request.num_steps, job.request.guidance) == (
        request_body["steps"],
        request_body["CFGScale"],
    )
    assert job.request.prompt == request_body["positivePrompt"]
    assert job.request.negative_prompt == request_body["negativePrompt"]


def test_defaults_are_those_of_the_parameter_page(client: TestClient, engine: FakeEngine) -> None:
    client.post("/v1", json=[make_task()])
    (job,) = engine.jobs
    assert (job.request.num_steps, job.request.guidance, job.image_format, job.quality) == (
        20,
        7.0,
        "JPG",
        95,
    )
    assert (job.request.width_px, job.request.height_px, len(job.request.seeds)) == (None, None, 1)
    assert job.request.seeds[0] < 2**32


def test_the_maximal_seed_of_the_page_is_accepted(client: TestClient) -> None:
    data = client.post("/v1", json=[make_task(seed=MAX_SEED, numberResults=2)]).json()["data"]
    assert [item["seed"] for item in data] == [MAX_SEED, 0]


def test_no_prompt_is_asked_for_with_a_blank(client: TestClient, engine: FakeEngine) -> None:
    client.post("/v1", json=[make_task(positivePrompt="__BLANK__")])
    assert engine.jobs[0].request.prompt == ""


@pytest.mark.parametrize(
    ("changes", "code", "parameter"),
    [
        ({"taskUUID": ...}, "missingTaskUUID", "taskUUID"),
        ({"taskUUID": "not-a-uuid"}, "invalidTaskUUID", "taskUUID"),
        ({"model": ...}, "missingModel", "model"),
        ({"model": "runware:1@1"}, "invalidModel", "model"),
        ({"positivePrompt": ...}, "missingPositivePrompt", "positivePrompt"),
        ({"positivePrompt": None}, "missingPositivePrompt", "positivePrompt"),
        ({"positivePrompt": ""}, "invalidPositivePrompt", "positivePrompt"),
        ({"positivePrompt": "x"}, "invalidPositivePrompt", "positivePrompt"),
        ({"positivePrompt": "x" * 4000}, "invalidPositivePrompt", "positivePrompt"),
        ({"positivePrompt": 5}, "invalidPositivePrompt", "positivePrompt"),
        ({"negativePrompt": "x"}, "invalidNegativePrompt", "negativePrompt"),
        ({"width": 1024}, "missingHeight", "height"),
        ({"height": 1024}, "missingWidth", "width"),
        ({"width": 512, "height": 512}, "unsupportedDimensions", ["width", "height"]),
        ({"width": 1024.5, "height": 1024}, "invalidWidth", "width"),
        ({"seed": -1}, "invalidSeed", "seed"),
        ({"seed": MAX_SEED + 1}, "invalidSeed", "seed"),
        ({"seed": True}, "invalidSeed", "seed"),
        ({"steps": 0}, "invalidSteps", "steps"),
        ({"steps": 101}, "invalidSteps", "steps"),
        ({"steps": "20"}, "invalidSteps", "steps"),
        ({"CFGScale": 1.0}, "invalidCFGScale", "CFGScale"),
        ({"CFGScale": 50.5}, "invalidCFGScale", "CFGScale"),
        ({"CFGScale": 7.005}, "invalidCFGScale", "CFGScale"),
        ({"numberResults": 21}, "invalidNumberResults", "numberResults"),
        ({"outputType": "file"}, "invalidOutputType", "outputType"),
        ({"outputType": []}, "invalidOutputType", "outputType"),
        ({"outputFormat": "TIFF"}, "invalidOutputFormat", "outputFormat"),
        ({"outputQuality": 100}, "invalidOutputQuality", "outputQuality"),
        ({"seedImage": "x"}, "unsupportedParameter", "seedImage"),
        ({"maskImage": "x"}, "unsupportedParameter", "maskImage"),
        ({"strength": 0.5}, "unsupportedParameter", "strength"),
        ({"taskType": ...}, "missingTaskType", "taskType"),
        ({"taskType": "videoInference"}, "unsupportedTaskType", "taskType"),
    ],
)
def test_a_faulty_parameter_is_named_with_its_code(
    client: TestClient, engine: FakeEngine, changes: dict[str, Any], code: str, parameter: object
) -> None:
    error = refusal(client, **changes)
    assert (error["code"], error["parameter"]) == (code, parameter)
    assert len(error["message"]) > 20
    assert engine.jobs == []


def test_an_error_says_what_would_be_right(client: TestClient) -> None:
    error = refusal(client, steps=500)
    assert (error["type"], error["min"], error["max"]) == ("integer", 1, 100)
    assert "500" in error["message"]
    sizes = refusal(client, width=512, height=512)["allowedValues"]
    assert len(sizes) == 17
    assert "1536x512" in sizes


def test_faults_are_reported_in_the_apis_order(client: TestClient) -> None:
    faults = {"unknownKey": 1, "model": ..., "positivePrompt": "", "steps": 0}
    codes = []
    for fixed in ("unknownKey", "model", "positivePrompt", "steps"):
        codes.append(refusal(client, **faults)["code"])
        del faults[fixed]
    assert codes == [
        "unsupportedParameter",
        "missingModel",
        "invalidPositivePrompt",
        "invalidSteps",
    ]
