"""The body of an imageInference task: every bound once, and errors in the API's own words."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from server.errors import TaskError
from server.tasks.seeds import MAX_SEED

BLANK_PROMPT = "__BLANK__"

OutputType = Literal["URL", "base64Data", "dataURI"]
UUID4 = r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-4[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}$"


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


class ImageInference(BaseModel):
    """Draw pictures from a prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    taskType: Literal["imageInference"] = Field(description="The type of the task.")
    taskUUID: str = Field(pattern=UUID4, description="UUID v4 that names the task.")
    model: str = Field(description="The model to draw with.", examples=["runware:180@1"])
    positivePrompt: str = Field(
        min_length=2,
        max_length=3000,
        description=f"What to draw. `{BLANK_PROMPT}` draws without a prompt.",
        examples=["A lighthouse on a cliff at dawn"],
    )
    negativePrompt: str | None = Field(
        None, min_length=2, max_length=3000, description="What to keep away from."
    )
    width: int | None = Field(None, description="Width in pixels; needs `height`.", examples=[1024])
    height: int | None = Field(None, description="Height in pixels; needs `width`.")
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="Seed of the first picture; random if left out."
    )
    steps: int = Field(20, ge=1, le=100, description="Number of denoising steps.")
    CFGScale: float = Field(
        7.0, ge=1.1, le=50, multiple_of=0.01, description="How closely to follow the prompt."
    )
    numberResults: int = Field(1, ge=1, le=20, description="Number of pictures.")
    outputType: Annotated[list[OutputType], BeforeValidator(_listed)] = Field(
        ["URL"], min_length=1, description="How pictures are returned: one form or several."
    )
    outputFormat: Annotated[Literal["JPG", "PNG", "WEBP"], BeforeValidator(_upper)] = Field(
        "JPG", description="File format, in any case."
    )
    outputQuality: int = Field(
        95, ge=20, le=99, description="Compression quality of JPG and WEBP; PNG is lossless."
    )


def parse_image_inference(task: dict[str, Any]) -> ImageInference:
    """Check one task and return it. `null` counts as absent.

    Raises:
        TaskError: the first fault, in the API's order: unknown names, missing ones, the prompt,
            values.
    """
    present = {name: value for name, value in task.items() if value is not None}
    try:
        return ImageInference.model_validate(present)
    except ValidationError as e:
        raise _first_fault(e) from None


def _first_fault(error: ValidationError) -> TaskError:
    def rank(fault: Any) -> int:
        if fault["type"] == "extra_forbidden":
            return 0
        if fault["type"] == "missing":
            return 1
        return 2 if fault["loc"][0] in ("positivePrompt", "negativePrompt") else 3

    return _to_task_error(min(error.errors(), key=rank))


def _to_task_error(fault: Any) -> TaskError:
    name = str(fault["loc"][0])
    field = ImageInference.model_fields.get(name)
    if field is None:
        allowed = sorted(ImageInference.model_fields)
        return TaskError(
            "unsupportedParameter",
            f"Unsupported use of '{name}' parameter. This parameter is not supported for the "
            f"selected model. Allowed values are: {', '.join(repr(n) for n in allowed)}.",
            name,
            {"allowedValues": allowed},
        )
    suffix = name[0].upper() + name[1:]
    if fault["type"] == "missing":
        return TaskError(f"missing{suffix}", f"Missing required parameter: '{name}'.", name)
    details = _field_facts(name)
    got = str(fault["input"])
    got = repr(fault["input"]) if len(got) <= 80 else f"{len(got)} characters"
    return TaskError(
        f"invalid{suffix}",
        f"Invalid value for '{name}' parameter. {_rule(name, details)} Got {got}.",
        name,
        details,
    )


def _field_facts(name: str) -> dict[str, Any]:
    """Return type, min, max, multiplier and allowedValues of a parameter, from its own schema."""
    schema = ImageInference.model_json_schema()["properties"][name]
    schema = next((s for s in schema.get("anyOf", ()) if s.get("type") != "null"), schema)
    values = schema.get("items", schema)
    allowed = values.get("enum") or ([values["const"]] if "const" in values else None)
    kind = {"number": "float"}.get(values.get("type", "string"), values.get("type", "string"))
    facts = {
        "type": kind,
        "min": schema.get("minimum", schema.get("minLength")),
        "max": schema.get("maximum", schema.get("maxLength")),
        "multiplier": schema.get("multipleOf"),
        "allowedValues": allowed,
    }
    return {key: value for key, value in facts.items() if value is not None}


def _rule(name: str, facts: dict[str, Any]) -> str:
    if "allowedValues" in facts:
        return f"It must be one of: {', '.join(map(repr, facts['allowedValues']))}."
    if name == "taskUUID":
        return "It must be a UUID v4."
    article = "an" if facts["type"] == "integer" else "a"
    rule = f"It must be {article} {facts['type']}"
    if "min" in facts:
        unit = " characters" if facts["type"] == "string" else ""
        rule += f" of {facts['min']} to {facts['max']}{unit}"
    if "multiplier" in facts:
        rule += f" in steps of {facts['multiplier']}"
    return f"{rule}."
