"""JSON schemas of an imageInference task and its parameters, made from its pydantic model."""

from typing import Any, get_args

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from server.runware.schemas import ImageInference


class WithoutTitles(GenerateJsonSchema):
    """Adds no titles to fields: they would repeat the names, in other letters."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Return that it should not."""
        return False


def task_schema() -> dict[str, Any]:
    """Return the JSON schema of a task, whole in itself, for the OpenAPI page."""
    schema = ImageInference.model_json_schema(schema_generator=WithoutTitles)
    parts = schema.pop("$defs")

    def inlined(value: Any) -> Any:
        if isinstance(value, list):
            return [inlined(item) for item in value]
        if not isinstance(value, dict):
            return value
        part = parts.get(str(value.get("$ref", "")).rpartition("/")[2], {})
        siblings = {k: v for k, v in value.items() if k != "$ref"}
        return {k: inlined(v) for k, v in {**part, **siblings}.items()}

    whole: dict[str, Any] = inlined(schema)
    return whole


def parameter_schema(path: tuple[str, ...]) -> dict[str, Any] | None:
    """Return the JSON schema of a parameter given by its path, or None if there is none."""
    model = _model_holding(path)
    schema: dict[str, Any] | None = None
    if model is not None:
        schema = model.model_json_schema()["properties"].get(path[-1])
    return schema


def sibling_parameters(path: tuple[str, ...]) -> list[str]:
    """Return the names allowed where the last name of the path stands."""
    model = _model_holding(path)
    return sorted(model.model_fields) if model is not None else []


def _model_holding(path: tuple[str, ...]) -> type[BaseModel] | None:
    """Return the model in which the last name of a path stands."""
    model: type[BaseModel] = ImageInference
    for name in path[:-1]:
        annotation = model.model_fields[name].annotation if name in model.model_fields else None
        inner = [t for t in (annotation, *get_args(annotation)) if _is_model(t)]
        if not inner:
            return None
        model = inner[0]
    return model


def _is_model(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
