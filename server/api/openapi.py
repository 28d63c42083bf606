"""The OpenAPI description: what requests and answers hold, typed so that clients can be generated.

FastAPI lists the routes; the bodies are described here, because the routes read them themselves.
"""

from collections.abc import Mapping
from typing import Any, cast

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from server.api.openai_answers import GeneratedImages, OpenAIFailure, OpenAIModel, OpenAIModels
from server.api.openai_edits import ImageEdit
from server.api.openai_request import ImageGeneration
from server.api.schema_values import (
    complete_generation,
    describe_form,
    name_values,
    say_defaults,
)
from server.api.state import AppState
from server.runware.answers import Answer, Failure
from server.runware.envelope import RETRY_AFTER_S
from server.runware.json_schema import WithoutTitles
from server.runware.other_tasks import OTHER_TASKS
from server.runware.schemas import ImageInference

REF = "#/components/schemas/"
TASKS: tuple[type[Any], ...] = (ImageInference, *OTHER_TASKS)
BODIES: tuple[type[Any], ...] = (
    *TASKS, Answer, Failure, ImageGeneration, ImageEdit, GeneratedImages, OpenAIModel, OpenAIModels,
    OpenAIFailure,
)  # fmt: skip

DESCRIPTION = """HunyuanImage-3.0 behind Runware's API.

`POST /v1` takes an array of tasks. An `imageInference` answers with its images; with
`deliveryMethod` `async`, or a `webhookURL` and no `deliveryMethod`, it is acknowledged at once and
polled with `getResponse`. Integers may be written as `1.0`, names of file formats in any case, and
`null` counts as absent. The same tasks run over a WebSocket on the same path: `docs/websocket.md`.
`POST /v1/images/generations` is the OpenAI form of an imageInference; `POST /v1/images/edits` is
that of one with images."""

TASK_EXAMPLE = {
    "taskType": "imageInference",
    "taskUUID": "c3f77111-0f44-4286-823a-e5839cd877cf",
    "model": "runware:180@1",
    "positivePrompt": "A red car to the left of a panda in the snow",
    "negativePrompt": "blurry, low detail",
    "width": 1536,
    "height": 512,
    "seed": 96688,
    "steps": 32,
    "CFGScale": 7.5,
    "includeCost": True,
}
GENERATION_EXAMPLE = {"prompt": "A red car to the left of a panda in the snow", "size": "1024x1024"}

# A key is sent, or it is not: it may stand in the body, or not be needed.
KEY: dict[str, Any] = {"security": [{"apiKey": []}, {}]}

_REASONS = {
    400: "A fault of the request.",
    401: "The API key is missing or not valid.",
    404: "There is no such task or model.",
    413: "The body is too large.",
    429: "Too much is queued; send it again later.",
    500: "The server failed.",
    503: "The server cannot do this now; send it again later.",
}
_RETRY_AFTER = {"description": "Seconds.", "schema": {"type": "integer"}, "example": RETRY_AFTER_S}


class DescribedApp(FastAPI):
    """An application with the description of this module."""

    def openapi(self) -> dict[str, Any]:
        """Return the description, made at the first call."""
        if self.openapi_schema is None:
            self.openapi_schema = describe(self, cast(AppState, self.state.hyimage))
        return self.openapi_schema


def json_body(name: str, example: object) -> dict[str, Any]:
    """Return what a route adds to its operation: a body whose schema is a component."""
    content = {"schema": {"$ref": REF + name}, "example": example}
    return {"requestBody": {"required": True, "content": {"application/json": content}}, **KEY}


def form_body(name: str) -> dict[str, Any]:
    """Return what a route adds to its operation: a multipart body whose schema is a component."""
    content = {"schema": {"$ref": REF + name}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": content}}, **KEY}


def flag(place: str, name: str, description: str) -> dict[str, Any]:
    """Return a parameter that `1` or `true` turns on, in the header or the query."""
    text = f"{description} On with `1` or `true`."
    schema = {"type": "string", "examples": ["1"]}
    return {"in": place, "name": name, "description": text, "schema": schema}


def answers(name: str, failure: str, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the answers of a route: its own, and failures with these statuses."""
    return {200: _answer("What was requested.", name), **failures(failure, *statuses)}


def failures(failure: str, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the failures of a route with these statuses."""
    documented = {status: _answer(_REASONS[status], failure) for status in statuses}
    for status in {429, 503} & set(statuses):
        documented[status]["headers"] = {"Retry-After": _RETRY_AFTER}
    return cast(dict[int | str, dict[str, Any]], documented)


def describe(app: FastAPI, state: AppState) -> dict[str, Any]:
    """Return the OpenAPI description of an application."""
    page = get_openapi(
        title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes
    )
    components = page.setdefault("components", {})
    schemas: dict[str, Any] = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path in page["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)  # faults.py answers 400 in an envelope
            for answer in operation["responses"].values():
                if (stream := answer.get("content", {}).get("text/event-stream")) is not None:
                    stream.pop("itemSchema", None)  # of OpenAPI 3.2; this page is 3.1
                    stream["schema"] = {"$ref": REF + "ServerSentEvent"}
    schemas |= body_schemas()
    api, sizes = state.settings.api, state.tasks.checkpoint.sizes
    name_values(schemas["ImageInference"], api, sizes)
    complete_generation(schemas["ImageGeneration"], schemas["ImageInference"], api, sizes)
    complete_generation(schemas["ImageEdit"], schemas["ImageInference"], api, sizes)
    describe_form(schemas["ImageEdit"])
    say_defaults(schemas, state.tasks.checkpoint.default_steps)
    components["securitySchemes"] = {
        "apiKey": {
            "type": "http",
            "scheme": "bearer",
            "description": "Needed only if the server has keys.",
        }
    }
    return page


def body_schemas() -> dict[str, Any]:
    """Return the components of all bodies: tasks, items, errors, and the OpenAI form's."""
    mode: JsonSchemaMode = "validation"
    _, found = TypeAdapter.json_schemas(
        [(body.__name__, mode, TypeAdapter(body)) for body in BODIES],
        ref_template=REF + "{model}",
        schema_generator=WithoutTitles,
    )
    schemas: dict[str, Any] = found["$defs"]
    names = {_task_type(schemas[task.__name__]): REF + task.__name__ for task in TASKS}
    schemas["JSONSchema"] = {"type": "object", "description": "A JSON schema, whole in itself."}
    schemas["ServerSentEvent"] = {
        "description": "One event of a stream.",
        "type": "object",
        "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
    }
    schemas["Task"] = {
        "description": "A task of any type.",
        "oneOf": [{"$ref": reference} for reference in names.values()],
        "discriminator": {"propertyName": "taskType", "mapping": names},
    }
    schemas["Tasks"] = {
        "description": "Tasks, which run side by side. The first may be an authentication.",
        "type": "array",
        "minItems": 1,
        "items": {"$ref": REF + "Task"},
    }
    schemas["TaskRequest"] = {
        "description": "An array of tasks, or one task.",
        "anyOf": [{"$ref": REF + "Tasks"}, {"$ref": REF + "Task"}],
    }
    return schemas


def _task_type(schema: Mapping[str, Any]) -> str:
    return str(schema["properties"]["taskType"]["const"])


def _answer(description: str, name: str) -> dict[str, Any]:
    schema = {"$ref": REF + name}
    return {"description": description, "content": {"application/json": {"schema": schema}}}
