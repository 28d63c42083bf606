"""What a task's image files carry, as the settings have it; by default nothing."""

from dataclasses import replace
from typing import Any

from server.delivery.file_metadata import embed
from server.engine.messages import JobImage
from server.image_settings import ImageSettings
from server.tasks.accepted import AcceptedTask

# Parameters that make the image. No URL, no key, no input image, and nothing about delivery.
_EMBEDDED = {
    "model", "positivePrompt", "negativePrompt", "acceleration", "acceleratorOptions",
}  # fmt: skip
_EMBEDDED_OPTIONS = {"rewrite", "systemPrompt", "forecast", "guidance", "align"}


def with_metadata(
    done: JobImage, task: AcceptedTask, position: int, settings: ImageSettings
) -> JobImage:
    """Return an image whose file has its parameters, and the mark of generation, if they are on.

    Its compressed pixels are the same bytes.
    """
    parameters = _parameters_of(task, position, done) if settings.embed_parameters else None
    return replace(done, encoded=embed(done.encoded, parameters, settings.mark_generated))


def _parameters_of(task: AcceptedTask, position: int, done: JobImage) -> dict[str, Any]:
    """Return what generates this image again: a task's own names, with its seed and its size."""
    given = task.parameters.model_dump(
        mode="json", include=_EMBEDDED, exclude_none=True, exclude_defaults=True
    )
    options = task.parameters.hunyuan.model_dump(
        mode="json", include=_EMBEDDED_OPTIONS, exclude_none=True, exclude_defaults=True
    )
    parameters = {
        "taskType": "imageInference",
        **given,
        "width": done.width_px,
        "height": done.height_px,
        "seed": task.seeds[position],
        "steps": task.parameters.steps,
        "CFGScale": task.parameters.CFGScale,
        "scheduler": task.parameters.scheduler,
    }
    text = None if done.diagnostics is None else done.diagnostics.text
    return {
        **parameters,
        **({"hunyuan": options} if options else {}),
        **({"text": text} if text else {}),
    }
