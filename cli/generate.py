"""Generate one image in this process, with a progress bar."""

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cache.plan import CachePlan
from model.errors import UnsupportedSizeError
from pipeline.encode import encode_image
from pipeline.generate import generate
from pipeline.load import load_pipeline
from pipeline.request import ImageDone, ImageFormat, ImageRequest, Rewrite, StepDone, TextWritten
from server.runware.cache_options import build_cache_plan
from server.runware.diagnostics import diagnostics_object
from server.runware.errors import TaskError
from server.runware.seeds import image_seeds
from server.runware.validation import parse_image_inference
from server.settings import Settings

_FORMATS: dict[str, ImageFormat] = {
    ".jpg": "JPG", ".jpeg": "JPG", ".png": "PNG", ".webp": "WEBP"
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How to walk from noise to image, in the API's values."""

    num_steps: int
    guidance: float
    scheduler: str = "Default"
    acceleration: str = "medium"
    tea_distance: float | None = None
    fb_threshold: float | None = None


def generate_image(
    settings: Settings,
    *,
    prompt: str,
    negative: str | None,
    size: str,
    sampling: Sampling,
    seed: int | None,
    quality: int,
    rewrite: Rewrite,
    system_prompt: str | None,
    output: Path,
    has_diagnostics: bool,
) -> None:
    """Generate `prompt` into the file `output`, whose ending names the format.

    Raises:
        TaskError: the file's ending is not a known format, its folder does not exist, or a value
            is not one of the API's.
        ModelError: the checkpoint, the size or a prompt is not usable.
    """
    plan, warnings = _plan_caches(prompt, sampling, settings)
    width_px, height_px = (None, None) if size == "auto" else parse_size(size)
    request = ImageRequest(
        prompt=prompt,
        negative_prompt=negative,
        width_px=width_px,
        height_px=height_px,
        num_steps=sampling.num_steps,
        guidance=sampling.guidance,
        seeds=image_seeds(seed, 1),
        scheduler=sampling.scheduler,
        cache=plan,
        rewrite=rewrite,
        system_prompt=system_prompt,
    )
    image_format = _format_of(output)
    done = _generate_with_progress(settings, request)
    output.write_bytes(encode_image(done.pixels_yx3, image_format, quality))
    if has_diagnostics:
        Console().print_json(data=diagnostics_object(done.diagnostics, warnings))
    generated = f"{done.width_px}x{done.height_px}, seed {done.seed}"
    Console().print(f"{output} ({generated})", highlight=False)


def _generate_with_progress(settings: Settings, request: ImageRequest) -> ImageDone:
    """Load the checkpoint, draw the job's one image, and show how far both are."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        loading = progress.add_task("loading", total=None)
        pipeline = load_pipeline(
            settings.worker,
            lambda done, total: progress.update(loading, completed=done >> 20, total=total >> 20),
        )
        generating = progress.add_task("generating", total=request.num_steps)
        written = 0
        for event in generate(pipeline, request):
            if isinstance(event, StepDone):
                progress.update(generating, completed=event.step)
            elif isinstance(event, TextWritten):
                progress.console.print(event.text[written:], end="", markup=False, soft_wrap=True)
                written = len(event.text)
            elif isinstance(event, ImageDone):
                return event
    raise AssertionError("a job ends with its image, or with an error that is raised")


def _plan_caches(
    prompt: str, sampling: Sampling, settings: Settings
) -> tuple[CachePlan, tuple[str, ...]]:
    """Return the plan that the API would make of the same values, and its warnings.

    Raises:
        TaskError: the API would refuse them.
    """
    options: dict[str, Any] = {}
    if sampling.tea_distance is not None:
        options |= {"teaCache": True, "teaCacheDistance": sampling.tea_distance}
    if sampling.fb_threshold is not None:
        options |= {"fbCache": True, "fbCacheThreshold": sampling.fb_threshold}
    task = parse_image_inference({
        "taskType": "imageInference",
        "taskUUID": str(uuid.uuid4()),
        "model": settings.api.model,
        "positivePrompt": prompt,
        "steps": sampling.num_steps,
        "scheduler": sampling.scheduler,
        "acceleration": sampling.acceleration,
        "acceleratorOptions": options,
    })  # fmt: skip
    return build_cache_plan(task, settings.cache)


def parse_size(size: str) -> tuple[int, int]:
    """Return (width, height) in pixels of "WIDTHxHEIGHT".

    Raises:
        UnsupportedSizeError: it is not written like that.
    """
    width, _, height = size.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise UnsupportedSizeError(f"size {size!r} is not understood; write WIDTHxHEIGHT or auto")
    return int(width), int(height)


def _format_of(output: Path) -> ImageFormat:
    if output.suffix.lower() not in _FORMATS:
        raise TaskError(
            "invalidOutputFormat",
            f"{output} ends in {output.suffix!r}; use one of {', '.join(_FORMATS)}",
        )
    if not output.parent.is_dir():
        raise TaskError(
            "invalidOutput", f"the folder {output.parent} does not exist; make it first"
        )
    return _FORMATS[output.suffix.lower()]
