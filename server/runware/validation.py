"""Validation errors of a task in the API's own form: one at a time, in the API's order.

Source: wire specification 1.11: unknown names, then missing ones, then the prompt, then values.
"""

import json
import uuid
from typing import Any

from pydantic import ValidationError

from pipeline.input_image import MAX_IMAGES
from server.runware.errors import TaskError
from server.runware.input_texts import FORMS, INPUT_NAMES
from server.runware.json_schema import sibling_parameters
from server.runware.parameter_reference import bounds
from server.runware.schemas import LONG_PROMPTS, ImageInference

MAX_SHOWN = 80  # characters of a faulty value that an error repeats


def parse_image_inference(
    task: dict[str, Any], default_steps: int | None = None, *, has_long_prompts: bool = False
) -> ImageInference:
    """Check one task and return it. `null` counts as absent.

    `default_steps` replaces the API's default number of steps, for distilled checkpoints;
    `has_long_prompts` lifts its limit of 3000 characters.

    Raises:
        TaskError: the first fault.
    """
    try:
        parsed = ImageInference.model_validate(
            with_default_steps(task, default_steps), context={LONG_PROMPTS: has_long_prompts}
        )
    except ValidationError as e:
        raise _to_task_error(min(e.errors(), key=_rank)) from None
    check_cache_window(parsed)
    return parsed


def with_default_steps(task: dict[str, Any], default_steps: int | None) -> dict[str, Any]:
    """Return a task with the checkpoint's own number of steps, if it gives none."""
    if default_steps is None or task.get("steps") is not None:
        return task
    return {**task, "steps": default_steps}


def new_image_inference(
    model: str, parameters: dict[str, Any], default_steps: int | None = None
) -> ImageInference:
    """Return the checked parameters of a task that no client has sent, under a new UUID.

    `parameters` are named as the fields of ImageInference; None counts as absent.

    Raises:
        TaskError: the first fault.
    """
    envelope = {"taskType": "imageInference", "taskUUID": str(uuid.uuid4()), "model": model}
    return parse_image_inference({**envelope, **parameters}, default_steps)


def check_cache_window(task: ImageInference) -> None:
    """Check the step window of the caches against the number of steps.

    Raises:
        TaskError: a boundary is given twice, or the window is empty or outside the steps.
    """
    options, steps = task.acceleratorOptions, task.steps
    for end in ("Start", "End"):
        names = [f"acceleratorOptions.cache{end}Step{suffix}" for suffix in ("", "Percentage")]
        if all(getattr(options, name.split(".")[1]) is not None for name in names):
            raise TaskError(
                "incompatibleParameters",
                f"'{names[0]}' and '{names[1]}' both set where caching {end.lower()}s; send one.",
                names,
            )
    start, end_step = cache_window(task)
    start_name = _given(options, "Start")
    end_name = _given(options, "End")
    if start >= steps and start_name:
        raise _window_error(start_name, start, f"less than the number of steps, {steps}")
    if end_step > steps:
        raise _window_error(end_name, end_step, f"at most the number of steps, {steps}")
    if start >= end_step and (start_name or end_name):
        name = end_name or start_name
        raise _window_error(name, end_step, f"greater than the start, step {start}")


def cache_window(task: ImageInference) -> tuple[int, int]:
    """Return the steps [start, end) in which a cache may reuse."""
    options, steps = task.acceleratorOptions, task.steps
    start, end = 0, steps
    if options.cacheStartStep is not None:
        start = options.cacheStartStep
    elif options.cacheStartStepPercentage is not None:
        start = steps * options.cacheStartStepPercentage // 100
    if options.cacheEndStep is not None:
        end = options.cacheEndStep
    elif options.cacheEndStepPercentage is not None:
        end = -(-steps * options.cacheEndStepPercentage // 100)
    return start, end


def _given(options: Any, end: str) -> str:
    """Return the dotted name of the boundary that the task gives, or nothing."""
    for suffix in ("", "Percentage"):
        if getattr(options, f"cache{end}Step{suffix}") is not None:
            return f"acceleratorOptions.cache{end}Step{suffix}"
    return ""


def _window_error(name: str, step: int, wanted: str) -> TaskError:
    last = name.rsplit(".", 1)[-1]
    return TaskError(
        f"invalid{last[0].upper()}{last[1:]}",
        f"Invalid value for '{name}' parameter. It means step {step}, which must be {wanted}.",
        name,
        {"type": "integer"},
    )


def _path(fault: Any) -> tuple[str, ...]:
    """Return the names that lead to a fault, without positions in lists."""
    return tuple(part for part in fault["loc"] if isinstance(part, str))


def _rank(fault: Any) -> int:
    if fault["type"] == "extra_forbidden":
        return 0
    if fault["type"] == "missing":
        return 1
    return 2 if fault["loc"][:1] in (("positivePrompt",), ("negativePrompt",)) else 3


def _to_task_error(fault: Any) -> TaskError:
    path = _path(fault)
    name, last = ".".join(path), path[-1]
    if last == "referenceImages" and isinstance(fault["loc"][-1], int):
        name += f"[{fault['loc'][-1]}]"
    if fault["type"] == "extra_forbidden":
        allowed = sibling_parameters(path)
        return TaskError(
            "unsupportedParameter",
            f"Unsupported use of '{name[:MAX_SHOWN]}' parameter. This parameter is not supported "
            f"for the selected model. Allowed values are: {', '.join(map(repr, allowed))}.",
            name[:MAX_SHOWN],
            {"allowedValues": allowed},
        )
    suffix = last[0].upper() + last[1:]
    if fault["type"] == "missing":
        return TaskError(f"missing{suffix}", f"Missing required parameter: '{name}'.", name)
    limits = bounds(path)
    return TaskError(
        f"invalid{suffix}",
        f"Invalid value for '{name}' parameter. {_rule(fault, last, limits)} "
        f"Got {_shown(fault['input'])}.",
        name,
        limits,
    )


def _shown(value: object) -> str:
    """Return a faulty value as the client wrote it: in JSON, a string in single quotes."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN else f"{len(str(value))} characters"


def _rule(fault: Any, name: str, limits: dict[str, Any]) -> str:
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    if "allowedValues" in limits:
        return f"It must be one of: {', '.join(map(repr, limits['allowedValues']))}."
    if name == "taskUUID":
        return "It must be a UUID v4."
    if name in ("webhookURL", "uploadEndpoint"):
        return "It must be an http or https URL."
    if name in INPUT_NAMES:
        array = f"an array of up to {MAX_IMAGES}: " if fault["type"] == "list_type" else ""
        return f"It must be {array}{FORMS}."
    article = "an" if limits["type"][0] in "aeiou" else "a"
    rule = f"It must be {article} {limits['type']}"
    unit = " characters" if limits["type"] == "string" else ""
    if "min" in limits and "max" in limits:
        rule += f" of {limits['min']} to {limits['max']}{unit}"
    elif "min" in limits:
        rule += f" of at least {limits['min']}"
    if "multiplier" in limits:
        rule += f" in steps of {limits['multiplier']}"
    return f"{rule}."
