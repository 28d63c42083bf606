"""The OpenAPI description: valid, whole, and true of what is sent and answered."""

import json
from typing import Any, get_args

import jsonschema
import pytest
from fastapi.testclient import TestClient
from openapi_spec_validator import validate

from schedulers.catalog import ACCEPTED
from server.api.dispatch import TASK_TYPES
from server.api.openai_request import ImageGeneration
from server.app import create_app
from server.runware.schemas import ImageInference, OutputType
from server.settings import Settings
from tests.contract.conftest import FakeEngine, make_task
from tests.contract.test_words import change_checkpoint

SEED_REQUEST = make_task(width=1536, height=512, outputType="URL")


@pytest.fixture
def page(client: TestClient) -> dict[str, Any]:
    body: dict[str, Any] = client.get("/openapi.json").json()
    return body


@pytest.fixture
def schemas(page: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = page["components"]["schemas"]
    return found


def is_valid(page: dict[str, Any], name: str, value: object) -> bool:
    """Return whether a value is what the page says of a component."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": page["components"]}
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


def test_the_page_is_valid_openapi(page: dict[str, Any]) -> None:
    validate(page)
    operations = [operation for path in page["paths"].values() for operation in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    assert not [operation for operation in operations if "422" in operation["responses"]]


def test_every_parameter_is_described_with_its_bounds(schemas: dict[str, Any]) -> None:
    task = schemas["ImageInference"]
    assert task["properties"].keys() == ImageInference.model_fields.keys()
    for field in task["properties"].values():  # one that repeats its component's has it there
        assert field.get("description") or schemas[field["$ref"].rpartition("/")[2]]["description"]
    assert task["properties"]["steps"]["maximum"] == 100
    assert task["properties"]["positivePrompt"]["minLength"] == 2
    assert set(task["properties"]["scheduler"]["enum"]) == set(ACCEPTED)
    assert task["properties"]["model"]["enum"] == ["runware:180@1", "tencent-hunyuanimage-3-0"]
    assert "1536x512" in task["properties"]["width"]["description"]
    assert 512 in task["properties"]["width"]["anyOf"][0]["enum"]
    text = json.dumps(schemas)
    assert '"title": "Cfgscale"' not in text
    assert "e+18" not in text
    assert '"maximum": 9223372036854776000' in text


def test_tasks_are_told_apart_by_their_type(schemas: dict[str, Any]) -> None:
    task = schemas["Task"]
    assert task["discriminator"]["propertyName"] == "taskType"
    assert set(task["discriminator"]["mapping"]) == set(TASK_TYPES)
    assert {option["$ref"] for option in task["oneOf"]} == set(
        task["discriminator"]["mapping"].values()
    )
    for name, reference in task["discriminator"]["mapping"].items():
        component = schemas[reference.rpartition("/")[2]]
        assert component["properties"]["taskType"]["const"] == name


def test_the_example_is_valid_and_accepted(client: TestClient, page: dict[str, Any]) -> None:
    for path in ("/v1", "/v1/images/generations"):
        content = page["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        name = content["schema"]["$ref"].rpartition("/")[2]
        assert is_valid(page, name, content["example"])
        answer = client.post(path, json=content["example"])
        assert answer.status_code == 200, answer.text
    assert (
        "cost" in client.post("/v1?dryRun=1", json=[make_task(includeCost=True)]).json()["data"][0]
    )


@pytest.mark.parametrize("form", [*get_args(OutputType), ["URL"], ["URL", "dataURI"]])
def test_the_form_of_images_is_a_string_or_an_array(
    client: TestClient, page: dict[str, Any], form: object
) -> None:
    task = make_task(outputType=form)
    assert is_valid(page, "TaskRequest", [task])
    assert is_valid(page, "TaskRequest", task)  # a lone task
    assert client.post("/v1", json=[task]).status_code == 200


@pytest.mark.parametrize(
    "changes",
    [{"outputType": []}, {"steps": 101}, {"scheduler": "none"}, {"maskImage": "x"}, {"width": 500}],
)
def test_what_is_refused_is_not_valid(
    client: TestClient, page: dict[str, Any], changes: dict[str, Any]
) -> None:
    task = make_task(**changes)
    assert not is_valid(page, "Task", task)
    assert client.post("/v1", json=[task]).status_code == 400


def test_answers_are_as_described(
    client: TestClient, page: dict[str, Any], engine: FakeEngine
) -> None:
    done = make_task(numberResults=2, includeCost=True, outputType=["URL", "base64Data"])
    waiting = make_task(deliveryMethod="async")
    other = [
        {"taskType": "getResponse", "taskUUID": done["taskUUID"]},
        {"taskType": "getTaskDetails", "taskUUID": done["taskUUID"]},
        {"taskType": "ping"},
        {"taskType": "modelSearch", "search": "hunyuan"},
        {"taskType": "accountManagement", "operation": "getDetails"},
        {"taskType": "getResponse", "taskUUID": "not known"},
    ]
    for tasks in ([done], [waiting], [make_task(steps=0), *other]):
        answer = client.post("/v1?diagnostics=1", json=tasks)
        assert answer.status_code == 200
        assert is_valid(page, "Answer", answer.json()), answer.text
        assert is_valid(page, "TaskRequest", tasks) is ("steps" not in tasks[0])
    engine.is_held = True
    held = make_task(deliveryMethod="async")
    client.post("/v1", json=[held])
    polled = client.post("/v1", json=[{**other[0], "taskUUID": held["taskUUID"]}])
    assert polled.json()["data"][0]["status"] == "processing"
    assert is_valid(page, "Answer", polled.json())
    engine.is_held = False


def test_failures_are_as_described(client: TestClient, page: dict[str, Any]) -> None:
    for body in ([make_task(steps=0)], [], [{"taskType": "getResponse", "taskUUID": "none"}], 3):
        answer = client.post("/v1", json=body)
        assert str(answer.status_code) in page["paths"]["/v1"]["post"]["responses"]
        assert is_valid(page, "Failure", answer.json()), answer.text
        assert not is_valid(page, "Failure", {"data": [], "errors": []})
    answer = client.post("/v1/images/generations", json={"prompt": "x"})
    assert is_valid(page, "OpenAIFailure", answer.json())
    assert not is_valid(page, "OpenAIFailure", {"detail": "x"})


def test_a_default_is_said_and_left_to_the_server(schemas: dict[str, Any]) -> None:
    """Generated clients would send it, and a distilled checkpoint has its own number of steps."""
    assert '"default":' not in json.dumps(schemas)
    steps = schemas["ImageInference"]["properties"]["steps"]
    assert steps["description"].endswith("Default: `20`.")
    assert (
        'Default: `"JPG"`.'
        in schemas["ImageInference"]["properties"]["outputFormat"]["description"]
    )


def test_a_distilled_checkpoint_says_its_own_steps(settings: Settings, engine: FakeEngine) -> None:
    change_checkpoint(settings, "config.json", cfg_distilled=True, use_meanflow=True)
    change_checkpoint(settings, "generation_config.json", diff_infer_steps=8)
    schemas = create_app(settings, engine).openapi()["components"]["schemas"]
    assert "Default: `8`." in schemas["ImageInference"]["properties"]["steps"]["description"]


def test_a_key_can_be_given(page: dict[str, Any]) -> None:
    assert page["components"]["securitySchemes"]["apiKey"]["scheme"] == "bearer"
    for path in ("/v1", "/v1/images/generations", "/v1/models"):
        (operation,) = page["paths"][path].values()
        assert operation["security"] == [{"apiKey": []}, {}]
        assert "authorization" not in json.dumps(operation.get("parameters", [])).lower()


def test_the_schema_of_a_task_knows_the_pairs_of_sizes(client: TestClient) -> None:
    schema = client.get("/v1/models/runware:180@1/schema.json").json()
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    pairs: list[tuple[dict[str, Any], bool]] = [
        ({}, True),
        ({"width": 1536, "height": 512}, True),
        ({"width": None, "height": None}, True),
        ({"width": 1536, "height": 1536}, False),
        ({"width": 1536}, False),
        ({"width": 1536, "height": None}, False),
    ]
    for size, is_right in pairs:
        task = make_task(**size)
        assert validator.is_valid(task) is is_right
        answer = client.post("/v1?dryRun=1", json=[task])
        assert answer.is_success is is_right


@pytest.mark.parametrize(
    ("changes", "is_right"),
    [
        (dict.fromkeys(ImageGeneration.model_fields.keys() - {"prompt"}), True),
        ({"model": "dall-e-3", "size": "1792x1024", "seed": 5, "guidance_scale": 4.5}, True),
        ({"size": "500x500"}, False),
        ({"model": "other"}, False),
        ({"prompt": ""}, False),
        ({"steps": 101}, False),
        ({"guidance_scale": 1}, False),
        ({"seed": -1}, False),
        ({"n": 21}, False),
        ({"colour": "red"}, False),
    ],
)
def test_the_openai_form_takes_what_its_schema_says(
    client: TestClient, page: dict[str, Any], changes: dict[str, Any], is_right: bool
) -> None:
    body = {"prompt": "a red fox", **changes}
    assert is_valid(page, "ImageGeneration", body) is is_right
    assert client.post("/v1/images/generations", json=body).is_success is is_right


def test_a_value_that_fastapi_refuses_gets_an_envelope(
    client: TestClient, engine: FakeEngine
) -> None:
    app: Any = client.app

    async def count(num: int) -> None: ...

    app.add_api_route("/v1/count", count)
    answer = client.get("/v1/count?num=many")
    assert (answer.status_code, answer.json()["errors"][0]["parameter"]) == (400, "num")
