"""Values as clients write them, before they are checked: nulls, integers, cases, old spellings."""

from collections.abc import Set
from typing import Any

from pydantic import BaseModel

# Parameters that official clients always send and that mean nothing for this model: not used.
# Source: wire specification 5.3 and 7.5, captured from the clients.
TOLERATED = {"clipSkip", "promptWeighting"}
ALIASES = {
    "fbcache": "fbCache",
    "cacheDistance": "fbCacheThreshold",
    "cacheStopStep": "cacheEndStep",
}
_INPUTS = {"seedImage", "referenceImages"}
_DEEP_CACHE = {"deepCache", "deepCacheInterval", "deepCacheBranchId", "deepCacheSkipMode"}


def listed(value: object) -> object:
    """Return a lone string as a list of one."""
    return [value] if isinstance(value, str) else value


def format_name(value: object) -> object:
    """Return the API's name of a file format, which clients write in any case and JPG also JPEG.

    Source: the official ComfyUI node offers `JPEG`, and no `JPG`.
    """
    if not isinstance(value, str):
        return value
    name = value.upper()
    return "JPG" if name == "JPEG" else name


def safety_mode(value: object) -> object:
    """Return `fast` for `full`, a video's mode that checks every frame: an image is one."""
    return "fast" if value == "full" else value


def cleaned(model: type[BaseModel], values: object, ignored: Set[str] = frozenset()) -> object:
    """Return an object's members without those that count as absent, and integers as integers.

    Absent are `null`, ignored names, and an empty object or list under a name the model lacks:
    clients send `"lora": []` for a feature that they do not use.
    """
    if not isinstance(values, dict):
        return values
    return {
        name: _integral(model, name, value)
        for name, value in values.items()
        if value is not None
        and name not in ignored
        and not (value in ({}, []) and name not in model.model_fields)
    }


def with_inputs(values: object) -> object:
    """Return a task whose `inputs` are parameters of its own, as the hosted API has them elsewhere.

    Anything else under that name stays, and is refused.
    Source: `inputs` of the task types in runware-sdk 1.8.0.
    """
    if not isinstance(values, dict) or not isinstance(values.get("inputs"), dict):
        return values
    inputs = {name: value for name, value in values["inputs"].items() if value is not None}
    others = {n: v for n, v in values.items() if n != "inputs" and v is not None}
    if not inputs or inputs.keys() - _INPUTS or inputs.keys() & others.keys():
        return values
    return others | inputs


def accelerator_values(model: type[BaseModel], values: object) -> object:
    """Return cleaned accelerator options under this API's names."""
    if not isinstance(values, dict):
        return values
    values = {ALIASES.get(k, k): v for k, v in values.items() if v is not None}
    # Another model's cache: off is what it is here, on stays and is refused.
    return cleaned(model, values, frozenset() if values.get("deepCache") else _DEEP_CACHE)


def _integral(model: type[BaseModel], name: str, value: Any) -> Any:
    """Return 1536.0 or 1e3 as an integer where the model has one: JSON has one type of number."""
    field = model.model_fields.get(name)
    is_integer = field is not None and field.annotation in (int, int | None)
    return int(value) if is_integer and isinstance(value, float) and value.is_integer() else value
