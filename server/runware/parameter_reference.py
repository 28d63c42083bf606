"""What every error says of its parameter: the JSON type, and where the parameter is described."""

from functools import lru_cache
from typing import Any

from server.runware.json_schema import parameter_schema

# Source: wire specification 1.11; the fragment is `request-` and the name, dots as dashes.
DOCUMENTATION = "https://runware.ai/docs/en/image-inference/api-reference"
_JSON_TYPES = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}


def json_type(value: object) -> str:
    """Return the JSON name of a value's type."""
    return _JSON_TYPES.get(type(value), "number")


def reference(parameter: str | list[str] | None) -> dict[str, str]:
    """Return `documentation`, and `type` if the schema has it, for an error object.

    For several parameters they are those of the first.
    """
    name = parameter[0] if isinstance(parameter, list) else parameter
    if name is None:
        return {"documentation": DOCUMENTATION}
    name = name.partition("[")[0]  # a place in an array
    fragment = name.lower().replace(".", "-")
    kind = _type_of(name)
    return {
        **({} if kind is None else {"type": kind}),
        "documentation": f"{DOCUMENTATION}#request-{fragment}",
    }


def bounds(path: tuple[str, ...]) -> dict[str, Any]:
    """Return type, min, max, multiplier and allowedValues of a parameter from its schema."""
    schema = parameter_schema(path) or {}
    schema = next((s for s in schema.get("anyOf", ()) if s.get("type") != "null"), schema)
    values = schema.get("items", schema)
    allowed = values.get("enum") or ([values["const"]] if "const" in values else None)
    kind = values.get("type", "object" if "$ref" in values else "string")
    found = {
        "type": {"number": "float"}.get(kind, kind),
        "min": schema.get("minimum", schema.get("minLength")),
        "max": schema.get("maximum", schema.get("maxLength")),
        "multiplier": schema.get("multipleOf"),
        "allowedValues": allowed,
    }
    return {key: value for key, value in found.items() if value is not None}


@lru_cache(maxsize=256)
def _type_of(name: str) -> str | None:
    path = tuple(name.split("."))
    if parameter_schema(path) is None:
        return None
    kind: str = bounds(path)["type"]
    return kind
