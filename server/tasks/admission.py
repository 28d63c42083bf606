"""Admission: refuses early and clearly what cannot be generated here, or not now."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model.errors import ModelError
from model.resolution import Size, find_size
from pipeline.checkpoint_info import CheckpointInfo
from server.delivery.egress import Egress, EgressError
from server.runware.errors import TaskError
from server.runware.schemas import BLANK_PROMPT, ImageInference
from server.settings import ApiSettings, ServerSettings

MAX_RETRY_AFTER_S = 600
ANYBODY = "anybody"  # the owner of all tasks while no API key is configured


def check_task(task: ImageInference, api: ApiSettings, info: CheckpointInfo) -> Size | None:
    """Return the size to generate, or None if the model is to choose it.

    Raises:
        TaskError: the model, size, or a way of generating is not served, or a prompt is too long.
    """
    if task.model not in (api.model, *api.model_aliases):
        raise TaskError(
            "invalidModel",
            f"Invalid value for 'model' parameter. It must be '{api.model}'. "
            f"Got '{task.model[:80]}'.",
            "model",
            {"allowedValues": [api.model]},
        )
    return check_parameters(task, api.default_size, info)


def check_parameters(task: ImageInference, default_size: str, info: CheckpointInfo) -> Size | None:
    """Return the size that a checkpoint generates for these parameters, None for its own choice.

    Raises:
        TaskError: the checkpoint does not generate the size, cannot rewrite prompts, takes no
            negative prompt, or a prompt is too long.
    """
    size = _find_size(task, default_size, info.sizes)
    _check_abilities(task, info)
    check_lengths(task, info, size)
    return size


async def check_targets(task: ImageInference, egress: Egress) -> None:
    """Check that a task's webhook and upload go where this server may send requests.

    Raises:
        TaskError: a target is closed; the message names the setting that opens it.
    """
    targets = {"webhookURL": task.webhookURL, "uploadEndpoint": task.uploadEndpoint}
    for name, url in targets.items():
        if url is None:
            continue
        try:
            await egress.check(url)
        except EgressError as e:
            code = f"invalid{name[0].upper()}{name[1:]}"
            message = f"Invalid value for '{name}' parameter: {e}."
            raise TaskError(code, message, name, {"type": "string"}) from None


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """Images that are queued, tasks of one owner, and in how many seconds there will be room."""

    num_images: int
    num_of_owner: int
    room_in_s: Callable[[], float | None]


def check_limits(limits: ServerSettings, num_images: int, owner: str, load: Load) -> None:
    """Check that there is room for one more task.

    Raises:
        TaskError: the queue is full, or the key has enough running already.
    """
    if load.num_images + num_images > limits.max_queued_images:
        raise _too_much(
            f"{load.num_images} images are queued and {limits.max_queued_images} is the limit", load
        )
    if load.num_of_owner >= limits.max_tasks_per_key and owner != ANYBODY:
        raise _too_much(f"This key has {load.num_of_owner} running tasks, which is its limit", load)


def _too_much(reason: str, load: Load) -> TaskError:
    seconds = load.room_in_s()
    if seconds is None:
        return TaskError("rateLimitExceeded", f"{reason}; try again later.")
    after_s = min(MAX_RETRY_AFTER_S, max(1, math.ceil(seconds)))
    message = f"{reason}; try again in {after_s} s."
    return TaskError("rateLimitExceeded", message, details={"retryAfter": after_s})


def conflict(task_uuid: str) -> TaskError:
    """Return the error for a UUID that is taken. It does not say by whom, nor whether it runs."""
    return TaskError(
        "conflictTaskUUID",
        f"The UUID '{task_uuid}' cannot be used for a task; send the task under a new one.",
        "taskUUID",
    )


def _check_abilities(task: ImageInference, info: CheckpointInfo) -> None:
    """Refuse what this checkpoint cannot do."""
    if task.hunyuan.rewrite != "off" and info.template != "instruct":
        raise TaskError(
            "unsupportedRewrite",
            "Unsupported use of 'hunyuan.rewrite' parameter. Only Instruct checkpoints rewrite "
            f"prompts; this one's template is '{info.template}'. Leave it out.",
            "hunyuan.rewrite",
            {"allowedValues": ["off"]},
        )
    if task.negativePrompt not in (None, BLANK_PROMPT) and info.is_distilled:
        raise TaskError(
            "unsupportedNegativePrompt",
            "Unsupported use of 'negativePrompt' parameter. This checkpoint is distilled: its "
            "guidance is an input, and there is no second prompt. Leave it out.",
            "negativePrompt",
        )


def check_lengths(
    task: ImageInference,
    info: CheckpointInfo,
    size: Size | None,
    images_wh: Sequence[tuple[int, int]] = (),
) -> None:
    """Refuse prompts that, with their images, need more positions than the model has.

    Raises:
        TaskError: one does.
    """
    system = task.hunyuan.systemPrompt or ""
    images, fewer = "its image", ""
    if images_wh:
        images, fewer = f"its image and {len(images_wh)} input images", ", or send fewer images"
    prompts = {"positivePrompt": task.positivePrompt, "negativePrompt": task.negativePrompt}
    for name, text in prompts.items():
        excess = info.excess_tokens(f"{system}{text or ''}", size, images_wh)
        if excess:
            raise TaskError(
                "promptTooLong",
                f"Invalid value for '{name}' parameter. With {images} it needs {excess} "
                f"positions more than the {info.max_positions} that the model has; shorten it by "
                f"{excess} tokens{fewer}.",
                name,
                {"max": info.max_positions, "excess": excess},
            )


def _find_size(task: ImageInference, default_size: str, sizes: Sequence[Size]) -> Size | None:
    width, height = task.width, task.height
    if (width is None) != (height is None):
        missing = "width" if width is None else "height"
        raise TaskError(
            f"missing{missing.capitalize()}",
            f"The parameters 'width' and 'height' must be used together; '{missing}' is missing.",
            missing,
        )
    if width is None or height is None:
        if default_size == "auto":
            return None
        width, height = map(int, default_size.split("x"))
    try:
        return find_size(sizes, width, height)
    except ModelError as e:
        allowed = [str(size) for size in sizes]
        raise TaskError(
            e.code,
            "Unsupported use of width/height parameters. The specified dimensions are not "
            f"supported for the selected model: {e}. "
            f"Supported values are: {', '.join(map(repr, allowed))}.",
            ["width", "height"],
            {"allowedValues": allowed},
        ) from None
