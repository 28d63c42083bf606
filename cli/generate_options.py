"""Options of `hyimage generate`: their types, help and checks, and the values they come to."""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer

from cli.options import check_output, parse_size
from pipeline.request import ImageFormat, Rewrite
from schedulers.catalog import ACCEPTED
from server.runware.schemas import Acceleration
from server.runware.seeds import MAX_SEED

FORMATS: dict[str, ImageFormat] = {
    ".jpg": "JPG", ".jpeg": "JPG", ".png": "PNG", ".webp": "WEBP"
}  # fmt: skip


def _check_image_file(path: Path) -> Path:
    if path.suffix.lower() not in FORMATS:
        raise typer.BadParameter(f"{path} ends in {path.suffix!r}; use one of {', '.join(FORMATS)}")
    check_output(path)
    return path


def _check_size(size: str | None) -> str | None:
    if size not in (None, "auto"):
        parse_size(size)
    return size


def _check_scheduler(name: str) -> str:
    """Return the API's name of a scheduler; refuse others with the nearest ones."""
    if name in ACCEPTED:
        return name
    folded = {known.casefold(): known for known in ACCEPTED}
    near = [folded[match] for match in get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "see docs/sampling.md"
    raise typer.BadParameter(f"{name!r} is none of the API's {len(ACCEPTED)} names; {hint}")


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateOptions:
    """The options of the command line. None: the default of the server."""

    prompt: str
    output: Path
    negative: str | None = None
    size: str | None = None
    steps: int | None = None
    guidance: float | None = None
    guidance_options: str | None = None
    seed: int | None = None
    quality: int | None = None
    rewrite: Rewrite = "off"
    system_prompt: str | None = None
    scheduler: str = "Default"
    acceleration: Acceleration | None = None
    tea_cache: float | None = None
    fb_cache: float | None = None
    images: tuple[Path, ...] = ()
    align: bool = False


PromptArgument = Annotated[str, typer.Argument(help="What to generate.")]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", help="jpg, png or webp file.", callback=_check_image_file)
]
NegativeOption = Annotated[str | None, typer.Option(help="What to keep away from.")]
SizeOption = Annotated[
    str | None,
    typer.Option(
        help="auto (the model chooses) or WIDTHxHEIGHT, an offered size; left out: the setting "
        "api.default_size.",
        callback=_check_size,
    ),
]
OptionalStepsOption = Annotated[
    int | None,
    typer.Option(help="Left out: 20, or a distilled checkpoint's own.", min=1, max=100),
]
ImageGuidanceOption = Annotated[
    float, typer.Option(help="1 turns guidance off, else 1.1 to 50.", min=1, max=50)
]
GuidanceOptionsOption = Annotated[
    str | None,
    typer.Option(
        help="`interval`, `plain`, or the object hunyuan.guidance of docs/guidance.md as JSON.",
    ),
]
SeedOption = Annotated[int | None, typer.Option(help="Random if left out.", min=0, max=MAX_SEED)]
QualityOption = Annotated[int, typer.Option(help="Of jpg and webp.", min=20, max=99)]
RewriteOption = Annotated[
    Rewrite, typer.Option(help="Let an Instruct checkpoint rewrite the prompt first.")
]
SystemPromptOption = Annotated[str | None, typer.Option(help="Instead of the checkpoint's own.")]
SchedulerOption = Annotated[
    str, typer.Option(help="One of the API's names.", callback=_check_scheduler)
]
AccelerationOption = Annotated[Acceleration | None, typer.Option(help="Preset of the step caches.")]
TeaCacheOption = Annotated[
    float | None, typer.Option(help="TeaCache with this distance.", min=0, max=1)
]
FbCacheOption = Annotated[
    float | None, typer.Option(help="FBCache with this threshold.", min=0, max=1)
]
InputImagesOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--image",
        help="Input image to edit or to take things from; up to 3, in the order of the prompt. "
        "Needs an Instruct checkpoint.",
    ),
]
AlignOption = Annotated[
    bool,
    typer.Option(
        "--align",
        help="Stretch input images to a trained size instead of cutting them, and give the result "
        "the ratio of the first one that has its size.",
    ),
]
