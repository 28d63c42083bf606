"""Whether a task can be generated, and as which job. Says no early and clearly; holds no state."""

from collections.abc import Sequence

from model.errors import ModelError
from model.resolution import Size, find_size
from pipeline.request import ImageRequest
from server.checkpoint_info import CheckpointInfo
from server.engine.messages import Job
from server.runware.cache_options import build_cache_plan
from server.runware.errors import TaskError
from server.runware.schemas import BLANK_PROMPT, ImageInference
from server.settings import ApiSettings, CacheSettings, ServerSettings
from server.tasks.tables import TaskRow

ANYBODY = "anybody"  # the owner of all tasks while no API key is configured


def check_task(task: ImageInference, api: ApiSettings, facts: CheckpointInfo) -> Size | None:
    """Return the size to generate, or None if the model is to choose it.

    Raises:
        TaskError: the model, size, or a way of generating is not served, or a prompt is too long.
    """
    if task.model != api.model:
        raise TaskError(
            "invalidModel",
            f"Invalid value for 'model' parameter. It must be '{api.model}'. "
            f"Got '{task.model[:80]}'.",
            "model",
            {"allowedValues": [api.model]},
        )
    size = _find_size(task, api, facts.sizes)
    _check_abilities(task, facts)
    _check_lengths(task, facts, size)
    return size


def check_limits(
    limits: ServerSettings, num_images: int, num_queued: int, owner: str, num_own_tasks: int
) -> None:
    """Check that there is room for one more task.

    Raises:
        TaskError: the queue is full, or the key has enough running already.
    """
    if num_queued + num_images > limits.max_queued_images:
        raise TaskError(
            "rateLimitExceeded",
            f"{num_queued} images are queued and {limits.max_queued_images} is the limit; "
            "try again later.",
        )
    if num_own_tasks >= limits.max_tasks_per_key and owner != ANYBODY:
        raise TaskError(
            "rateLimitExceeded",
            f"This key has {num_own_tasks} running tasks, which is its limit; try again later.",
        )


def to_job(
    task: ImageInference, row: TaskRow, positions: Sequence[int], cache: CacheSettings
) -> Job:
    """Return the job that generates the images at these positions of an admitted task."""
    plan, _ = build_cache_plan(task, cache)
    negative = task.negativePrompt
    request = ImageRequest(
        prompt="" if task.positivePrompt == BLANK_PROMPT else task.positivePrompt,
        negative_prompt=None if negative == BLANK_PROMPT else negative,
        width_px=row.request.get("width"),
        height_px=row.request.get("height"),
        num_steps=task.steps,
        guidance=task.CFGScale,
        seeds=tuple(int(row.seeds[position]) for position in positions),
        scheduler=task.scheduler,
        cache=plan,
        rewrite=task.hunyuan.rewrite,
        system_prompt=task.hunyuan.systemPrompt,
    )
    return Job(
        job_id=row.task_uuid,
        request=request,
        image_format=task.outputFormat,
        quality=task.outputQuality,
    )


def conflict(task_uuid: str) -> TaskError:
    """Return the error for a UUID that is taken."""
    return TaskError(
        "conflictTaskUUID",
        f"A task with UUID '{task_uuid}' exists already; use a new UUID, or poll it.",
        "taskUUID",
    )


def _check_abilities(task: ImageInference, facts: CheckpointInfo) -> None:
    """Refuse what this checkpoint cannot do."""
    if task.hunyuan.rewrite != "off" and facts.template != "instruct":
        raise TaskError(
            "unsupportedRewrite",
            "Unsupported use of 'hunyuan.rewrite' parameter. Only Instruct checkpoints rewrite "
            f"prompts; this one's template is '{facts.template}'. Leave it out.",
            "hunyuan.rewrite",
            {"allowedValues": ["off"]},
        )
    if task.negativePrompt not in (None, BLANK_PROMPT) and facts.is_distilled:
        raise TaskError(
            "unsupportedNegativePrompt",
            "Unsupported use of 'negativePrompt' parameter. This checkpoint is distilled: its "
            "guidance is an input, and there is no second prompt. Leave it out.",
            "negativePrompt",
        )


def _check_lengths(task: ImageInference, facts: CheckpointInfo, size: Size | None) -> None:
    """Refuse prompts that, with the image, need more positions than the model has."""
    system = task.hunyuan.systemPrompt or ""
    prompts = {"positivePrompt": task.positivePrompt, "negativePrompt": task.negativePrompt}
    for name, text in prompts.items():
        excess = facts.excess_tokens(f"{system}{text or ''}", size)
        if excess:
            raise TaskError(
                "promptTooLong",
                f"Invalid value for '{name}' parameter. With its image it needs {excess} "
                f"positions more than the {facts.max_positions} that the model has; shorten it by "
                f"{excess} tokens.",
                name,
                {"max": facts.max_positions, "excess": excess},
            )


def _find_size(task: ImageInference, api: ApiSettings, sizes: Sequence[Size]) -> Size | None:
    width, height = task.width, task.height
    if (width is None) != (height is None):
        missing = "width" if width is None else "height"
        raise TaskError(
            f"missing{missing.capitalize()}",
            f"The parameters 'width' and 'height' must be used together; '{missing}' is missing.",
            missing,
        )
    if width is None or height is None:
        if api.default_size == "auto":
            return None
        width, height = map(int, api.default_size.split("x"))
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
