"""Draw one picture in this process, with a progress bar."""

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from model.errors import UnsupportedSizeError
from server.errors import TaskError
from server.messages import ImageDone, ImageFormat, Job, StepDone
from server.settings import Settings
from server.tasks.seeds import image_seeds
from server.worker.parts import build_parts
from server.worker.pipeline import draw

_FORMATS: dict[str, ImageFormat] = {
    ".jpg": "JPG", ".jpeg": "JPG", ".png": "PNG", ".webp": "WEBP"
}  # fmt: skip


def generate_picture(
    settings: Settings,
    *,
    prompt: str,
    negative: str | None,
    size: str,
    steps: int,
    guidance: float,
    seed: int | None,
    quality: int,
    output: Path,
) -> None:
    """Draw `prompt` into the file `output`, whose ending names the format.

    Raises:
        TaskError: the file's ending is not a known format, or its folder does not exist.
        ModelError: the checkpoint, the size or a prompt is not usable.
    """
    job = Job(
        job_id="generate",
        prompt=prompt,
        negative_prompt=negative,
        width_px=parse_size(size)[0],
        height_px=parse_size(size)[1],
        num_steps=steps,
        guidance=guidance,
        seeds=image_seeds(seed, 1),
        image_format=_format_of(output),
        quality=quality,
    )
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        loading = progress.add_task("loading", total=None)
        parts = build_parts(
            settings.worker,
            lambda done, total: progress.update(loading, completed=done >> 20, total=total >> 20),
        )
        drawing = progress.add_task("drawing", total=steps)
        for event in draw(parts, job):
            if isinstance(event, StepDone):
                progress.update(drawing, completed=event.step)
            elif isinstance(event, ImageDone):
                output.write_bytes(event.encoded)
    Console().print(f"{output} ({size}, seed {job.seeds[0]})", highlight=False)


def parse_size(size: str) -> tuple[int, int]:
    """Return (width, height) in pixels of "WIDTHxHEIGHT".

    Raises:
        UnsupportedSizeError: it is not written like that.
    """
    width, _, height = size.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise UnsupportedSizeError(f"size {size!r} is not understood; write WIDTHxHEIGHT")
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
