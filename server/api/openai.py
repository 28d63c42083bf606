"""The OpenAI form: images and models, translated onto the same tasks, for gateways that speak it.

Source: "Create image" and "Models" of the OpenAI API reference.
"""

import time
from collections.abc import Sequence
from typing import Any, cast

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from server.api.disconnect import while_connected
from server.api.dispatch import Caller, run_task, server_timing
from server.api.frames import BaseUrl, bearer_key, parse_json
from server.api.openai_answers import GeneratedImages, OpenAIModel, OpenAIModels
from server.api.openai_edits import read_edit
from server.api.openai_errors import failure
from server.api.openai_request import ImageGeneration, parse_generation, to_task
from server.api.openai_stream import stream_images
from server.api.openapi import GENERATION_EXAMPLE, KEY, answers, form_body, json_body
from server.api.schema_values import name_values, size_pairs
from server.api.state import AppState, State
from server.runware.errors import TaskError
from server.runware.json_schema import task_schema
from server.settings import ApiSettings
from server.tasks.input_rules import no_images
from server.tasks.reader import Client

router = APIRouter()

_GENERATION = json_body("ImageGeneration", GENERATION_EXAMPLE)
_EDIT = form_body("ImageEdit")
_IMAGES = answers("GeneratedImages", "OpenAIFailure", 400, 401, 413, 429, 500, 503)
_IMAGES[200]["content"]["text/event-stream"] = {"schema": {"type": "string"}}  # with `stream`


@router.post(
    "/v1/images/generations",
    operation_id="createImages",
    openapi_extra=_GENERATION,
    responses=_IMAGES,
)
@router.post("/v1/images/generations/", include_in_schema=False)
async def create_images(request: Request, state: State, base_url: BaseUrl) -> Response:
    """Generate images; the OpenAI form of an imageInference task."""
    try:
        owner = _check_key(request, state)
        body = parse_generation(parse_json(await request.body()), state.settings.api)
        return await _answer(request, state, Client(owner, base_url), body)
    except TaskError as e:
        state.count_error(e)
        return failure(e)


@router.post("/v1/images/edits", operation_id="editImages", openapi_extra=_EDIT, responses=_IMAGES)
@router.post("/v1/images/edits/", include_in_schema=False)
async def edit_images(request: Request, state: State, base_url: BaseUrl) -> Response:
    """Generate images from images; the OpenAI form of an imageInference with referenceImages."""
    settings = state.settings
    try:
        owner = _check_key(request, state)
        if not state.tasks.max_input_images:
            raise no_images("image", state.tasks.checkpoint)
        body, images = await read_edit(request, settings.api, settings.server.max_body_bytes)
        return await _answer(request, state, Client(owner, base_url), body, images)
    except TaskError as e:
        state.count_error(e)
        return failure(e)


async def _answer(
    request: Request,
    state: AppState,
    client: Client,
    body: ImageGeneration,
    images: Sequence[str] = (),
) -> Response:
    """Generate what a request wants; return it, or its events.

    Raises:
        TaskError: the task was refused, or it failed.
    """
    task = to_task(body, state.settings.api.model, state.tasks.checkpoint)
    task["referenceImages"] = list(images)
    caller = Caller(client, repeats_failures=False, has_long_prompts=True)
    if body.stream:
        return await stream_images(state, task, caller, body)
    running = _run(state, task, caller)
    if state.settings.server.cancel_on_disconnect == "never":
        items = await running
    else:
        items = await while_connected(request, running)
    size = await state.tasks.reader.generated_size(task["taskUUID"], client)
    return JSONResponse(
        GeneratedImages(
            created=int(time.time()),
            data=[{"b64_json": item["imageBase64Data"]} for item in items]
            if body.has_base64
            else [{"url": item["imageURL"]} for item in items],
            background="opaque",
            output_format=body.output_format,
            quality=body.drawn_quality,
            size=size,
        ),
        headers=server_timing(caller.seconds),
    )


@router.post("/v1/images/variations", include_in_schema=False)
async def refuse_variations() -> JSONResponse:
    """Refuse images from an image without a prompt."""
    message = "This model needs a prompt; use /v1/images/edits, or /v1/images/generations."
    return failure(TaskError("unsupported", message))


@router.get(
    "/v1/models",
    operation_id="listModels",
    openapi_extra=KEY,
    responses=answers("OpenAIModels", "OpenAIFailure", 401),
)
async def list_models(request: Request, state: State) -> JSONResponse:
    """Return the names of the served model, in the OpenAI form."""
    try:
        _check_key(request, state)
    except TaskError as e:
        state.count_error(e)
        return failure(e)
    names = _names(state.settings.api)
    return JSONResponse(OpenAIModels(object="list", data=[_model(name) for name in names]))


@router.get(
    "/v1/models/{model_id}",
    operation_id="getModel",
    openapi_extra=KEY,
    responses=answers("OpenAIModel", "OpenAIFailure", 401, 404),
)
async def get_model(model_id: str, request: Request, state: State) -> JSONResponse:
    """Return one name of the served model, in the OpenAI form."""
    try:
        _check_key(request, state)
        _check_name(model_id, state.settings.api)
    except TaskError as e:
        state.count_error(e)
        return failure(e)
    return JSONResponse(_model(model_id))


@router.get(
    "/v1/models/{model_id}/schema.json",
    operation_id="getModelSchema",
    responses=answers("JSONSchema", "OpenAIFailure", 404),
)
async def get_model_schema(model_id: str, state: State) -> JSONResponse:
    """Return the JSON schema of an imageInference task, open to everybody as `/docs` is."""
    try:
        _check_name(model_id, state.settings.api)
    except TaskError as e:
        state.count_error(e)
        return failure(e)
    schema = task_schema()
    name_values(schema, state.settings.api, state.tasks.checkpoint.sizes)
    return JSONResponse(schema | {"allOf": [size_pairs(state.tasks.checkpoint.sizes)]})


async def _run(state: AppState, task: dict[str, Any], caller: Caller) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    async for batch in run_task(state, task, caller):
        items += cast(list[dict[str, Any]], batch)
    return items


def _check_key(request: Request, state: AppState) -> str:
    return state.keys.check(bearer_key(request.headers.get("authorization")))


def _check_name(model_id: str, api: ApiSettings) -> None:
    if model_id not in _names(api):
        message = f"The model '{model_id[:80]}' does not exist."
        raise TaskError("modelNotFound", message, "model")


def _names(api: ApiSettings) -> tuple[str, ...]:
    return (api.model, *api.model_aliases, *api.openai_models)


def _model(name: str) -> OpenAIModel:
    return {"id": name, "object": "model", "created": 0, "owned_by": "tencent"}
