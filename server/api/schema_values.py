"""Values in the schemas of requests that settings and checkpoint decide: models, sizes, bounds."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from model.resolution import Size
from pipeline.input_image import MAX_IMAGES
from server.api.openai_edits import FILE
from server.api.openai_request import OPENAI_SIZES
from server.settings import ApiSettings

# Parameters of the OpenAI form that are those of a task, with their bounds. Its prompts may be
# longer, so the greatest length is not one of these.
_SAME = {
    "prompt": "positivePrompt",
    "negative_prompt": "negativePrompt",
    "seed": "seed",
    "steps": "steps",
    "guidance_scale": "CFGScale",
}
_BOUNDS = ("type", "enum", "minimum", "maximum", "multipleOf", "minLength")


def name_values(schema: dict[str, Any], api: ApiSettings, sizes: Sequence[Size]) -> None:
    """Add to the schema of a task what settings and checkpoint decide: models and sizes."""
    properties = schema["properties"]
    properties["model"]["enum"] = [api.model, *api.model_aliases]
    pairs = ", ".join(map(str, sizes))
    for name, values in (
        ("width", {size.width_px for size in sizes}),
        ("height", {size.height_px for size in sizes}),
    ):
        properties[name]["anyOf"][0]["enum"] = sorted(values)
        properties[name]["description"] += f" Together one of: {pairs}."


def size_pairs(sizes: Sequence[Size]) -> dict[str, Any]:
    """Return a schema of tasks that give no size, or one of these."""
    none = {"properties": {"width": {"type": "null"}, "height": {"type": "null"}}}
    pairs = [
        {
            "properties": {"width": {"const": size.width_px}, "height": {"const": size.height_px}},
            "required": ["width", "height"],
        }
        for size in sizes
    ]
    return {"anyOf": [none, *pairs]}


def complete_generation(
    schema: dict[str, Any], task: dict[str, Any], api: ApiSettings, sizes: Sequence[Size]
) -> None:
    """Add to the schema of the OpenAI form its models, sizes, and bounds that are a task's."""
    properties = schema["properties"]
    names = (api.model, *api.model_aliases, *api.openai_models)
    properties["model"] = _or_null({**properties["model"], "enum": list(dict.fromkeys(names))})
    properties["size"]["enum"] = list(dict.fromkeys(["auto", *map(str, sizes), *OPENAI_SIZES]))
    for name, parameter in _SAME.items():
        properties[name] |= _bounds(task["properties"][parameter])
    for name in properties.keys() - set(schema["required"]):
        properties[name] = _or_null(properties[name])


def describe_form(schema: dict[str, Any]) -> None:
    """Add the files of a multipart form to the schema of its fields, which may be no null."""
    properties = schema["properties"]
    for name, parameter in properties.items():
        if "anyOf" in parameter:
            values, _ = parameter["anyOf"]
            properties[name] = {k: v for k, v in parameter.items() if k != "anyOf"} | values
    several = {"type": "array", "minItems": 1, "maxItems": MAX_IMAGES, "items": FILE}
    words = f"The images to edit, up to {MAX_IMAGES}, in the order in which the prompt means them."
    properties["image"] = {"anyOf": [FILE, several], "description": words}
    properties["image[]"] = {**several, "description": "The same under PHP's name for a list."}
    schema["anyOf"] = [{"required": ["image"]}, {"required": ["image[]"]}]


def say_defaults(schemas: Mapping[str, Any], default_steps: int | None) -> None:
    """Move the defaults of all parameters into their descriptions.

    Generated clients send what a schema calls a default, or take the parameter for a required one.
    Left out, it is what this server's settings and checkpoint make it.
    """
    if default_steps is not None:
        schemas["ImageInference"]["properties"]["steps"]["default"] = default_steps
    for schema in schemas.values():
        for parameter in schema.get("properties", {}).values():
            default = parameter.pop("default", None)
            if default is not None and not isinstance(default, dict):
                words = parameter.get("description", "")
                parameter["description"] = f"{words} Default: `{json.dumps(default)}`.".strip()


def _bounds(schema: dict[str, Any]) -> dict[str, Any]:
    """Return type and bounds of a parameter, which may also be null."""
    values = schema["anyOf"][0] if "anyOf" in schema else schema
    return {name: values[name] for name in _BOUNDS if name in values}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a parameter for which null counts as absent."""
    values = {**(schema["anyOf"][0] if "anyOf" in schema else {}), **_bounds_beside(schema)}
    words = {k: v for k, v in schema.items() if k not in (*_BOUNDS, "anyOf")}
    return {"anyOf": [values, {"type": "null"}], **words}


def _bounds_beside(schema: dict[str, Any]) -> dict[str, Any]:
    return {name: schema[name] for name in _BOUNDS if name in schema}
