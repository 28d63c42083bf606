"""Rules of input images: how many a server takes, and why it refuses those of a task."""

from collections.abc import Iterable

from pipeline.checkpoint_info import CheckpointInfo
from pipeline.settings import PipelineSettings
from server.input_settings import InputSettings
from server.runware.errors import TaskError
from server.runware.input_texts import list_input_texts
from server.runware.schemas import ImageInference
from server.tasks.tables import StoredInput, TaskRow


def count_input_images(info: CheckpointInfo, worker: PipelineSettings) -> int:
    """Return how many images a task may bring; 0 if the checkpoint or the settings take none."""
    return info.max_input_images if worker.image_inputs else 0


def check_input_images(
    task: ImageInference, info: CheckpointInfo, worker: PipelineSettings
) -> None:
    """Refuse images where none are taken, too many of them, and options that need some.

    Raises:
        TaskError: the message says whether the checkpoint or a setting is the reason.
    """
    texts = list_input_texts(task)
    if not texts:
        if task.hunyuan.align:
            raise TaskError(
                "incompatibleParameters",
                "'hunyuan.align' is about input images and there are none; send 'referenceImages' "
                "or 'seedImage' with it, or leave it out.",
                ["hunyuan.align", "referenceImages"],
            )
        return
    name = texts[0].parameter.partition("[")[0]
    if not count_input_images(info, worker):
        raise no_images(name, info)
    if len(texts) > info.max_input_images:
        raise TaskError(
            "invalidReferenceImages",
            f"'seedImage' and 'referenceImages' together are {len(texts)} images; at most "
            f"{info.max_input_images} are taken. Leave {len(texts) - info.max_input_images} out.",
            ["referenceImages", "seedImage"],
            {"type": "array", "max": info.max_input_images},
        )


def check_queued_bytes(
    rows: Iterable[TaskRow], inputs: Iterable[StoredInput], limits: InputSettings
) -> None:
    """Refuse a task whose images, with those of the tasks that have not ended, are too much.

    The worker has the bytes of every task that waits.

    Raises:
        TaskError: they are.
    """
    own = sum(one.size_bytes for one in inputs)
    if not own:
        return
    queued = sum(one.size_bytes for row in rows for one in row.stored_inputs)
    if queued + own > limits.max_queued_bytes:
        raise TaskError(
            "rateLimitExceeded",
            f"The input images of unfinished tasks are {queued} bytes, this task's are {own}, and "
            f"{limits.max_queued_bytes} is the limit; try again later.",
        )


def no_images(name: str, info: CheckpointInfo) -> TaskError:
    """Return the error for images where none are taken: by the checkpoint, or by a setting."""
    if info.max_input_images:
        reason = (
            "This server does not read input images: its setting worker.image_inputs is off. Leave "
            "it out, or let the operator set worker.image_inputs = true and start the server again."
        )
    else:
        reason = (
            "Only Instruct checkpoints take input images, and this one's template is "
            f"'{info.template}'. Leave it out, or send the task to a server of an Instruct one."
        )
    message = f"Unsupported use of '{name}' parameter. {reason}"
    return TaskError("unsupportedParameter", message, name)
