"""The option `--guidance-options`: a preset's name, or the object of the API as JSON."""

import json

from pydantic import ValidationError

from pipeline.guidance_plan import GuidancePlan
from server.runware.errors import CommandError
from server.runware.guidance_options import GuidanceOptions, build_guidance_plan


def parse_guidance_options(text: str | None) -> object:
    """Return the value that `hunyuan.guidance` would have in a task.

    Raises:
        CommandError: it begins like an object and is no JSON.
    """
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as e:
        raise CommandError(f"--guidance-options {text!r} is not JSON: {e}") from None


def read_guidance_plan(text: str) -> GuidancePlan:
    """Return the plan of an option's value.

    Raises:
        CommandError: the API would refuse it.
    """
    try:
        options = GuidanceOptions.model_validate(parse_guidance_options(text))
    except ValidationError as e:
        fault = e.errors()[0]
        where = "".join(f"{part!r}: " for part in fault["loc"] if isinstance(part, str))
        rule = fault["msg"].removeprefix("Value error, ")
        raise CommandError(f"--guidance-options {text}: {where}{rule}") from None
    return build_guidance_plan(options, "plain")
