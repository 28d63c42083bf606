"""`hyimage generate`: one image without a server, by the server's own checks and defaults."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import progress_bar, stderr, stdout
from cli.generate_options import (
    FORMATS,
    AccelerationOption,
    AlignOption,
    FbCacheOption,
    GenerateOptions,
    GuidanceOptionsOption,
    ImageGuidanceOption,
    InputImagesOption,
    NegativeOption,
    OptionalStepsOption,
    OutputOption,
    PromptArgument,
    QualityOption,
    RewriteOption,
    SchedulerOption,
    SeedOption,
    SizeOption,
    SystemPromptOption,
    TeaCacheOption,
)
from cli.guidance_options import parse_guidance_options
from cli.input_images import read_input_files
from cli.options import (
    CheckpointOption,
    ConfigOption,
    parse_size,
    read_settings,
    reported_errors,
)
from pipeline.checkpoint_info import CheckpointInfo, read_checkpoint_info
from pipeline.request import ImageDone, ImageRequest, StepDone, TextWritten
from server.runware.diagnostics import diagnostics_object, list_request_warnings
from server.runware.errors import CommandError, TaskError
from server.runware.image_request import to_image_request
from server.runware.schemas import ImageInference
from server.runware.seeds import image_seeds
from server.runware.validation import new_image_inference
from server.tasks.admission import check_lengths, check_parameters

if TYPE_CHECKING:
    from pipeline.settings import PipelineSettings
    from server.settings import Settings

# Which option gives a parameter of the API, for its error messages. Longer names come first.
_OPTIONS = {
    "acceleratorOptions.teaCacheDistance": "--tea-cache",
    "acceleratorOptions.fbCacheThreshold": "--fb-cache",
    "hunyuan.systemPrompt": "--system-prompt",
    "hunyuan.rewrite": "--rewrite",
    **{
        f"hunyuan.guidance.{name}": f"{name!r} of --guidance-options"
        for name in ("interval", "rescale", "ramp", "apg.momentum", "apg.normThreshold", "apg.eta")
    },
    "hunyuan.guidance": "--guidance-options",
    "positivePrompt": "PROMPT",
    "negativePrompt": "--negative",
    "acceleration": "--acceleration",
    "outputQuality": "--quality",
    "scheduler": "--scheduler",
    "CFGScale": "--guidance",
    "steps": "--steps",
    "seed": "--seed",
}


def generate(
    prompt: PromptArgument,
    output: OutputOption = Path("image.png"),
    negative: NegativeOption = None,
    size: SizeOption = None,
    steps: OptionalStepsOption = None,
    guidance: ImageGuidanceOption = 7.0,
    guidance_options: GuidanceOptionsOption = None,
    seed: SeedOption = None,
    quality: QualityOption = 95,
    rewrite: RewriteOption = "off",
    system_prompt: SystemPromptOption = None,
    scheduler: SchedulerOption = "Default",
    acceleration: AccelerationOption = None,
    tea_cache: TeaCacheOption = None,
    fb_cache: FbCacheOption = None,
    image: InputImagesOption = None,
    align: AlignOption = False,
    diagnostics: Annotated[
        bool, typer.Option("--diagnostics", help="Print how it was generated, as JSON.")
    ] = False,
    config: ConfigOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Generate one image without a server; checks and defaults are the server's.

    Example: hyimage generate "a cat and a dog in a meadow" -o pets.png --size 1280x768
    """
    options = GenerateOptions(
        prompt=prompt,
        output=output,
        negative=negative,
        size=size,
        steps=steps,
        guidance=guidance,
        guidance_options=guidance_options,
        seed=seed,
        quality=quality,
        rewrite=rewrite,
        system_prompt=system_prompt,
        scheduler=scheduler,
        acceleration=acceleration,
        tea_cache=tea_cache,
        fb_cache=fb_cache,
        images=tuple(image or ()),
        align=align,
    )
    with reported_errors():
        _generate_file(options, read_settings(config, checkpoint), diagnostics)


def _generate_file(options: GenerateOptions, settings: Settings, has_diagnostics: bool) -> None:
    info = read_checkpoint_info(Path(settings.worker.checkpoint))
    parameters, request = to_request(options, settings, info)
    worker = settings.worker
    if request.images:
        worker = worker.model_copy(update={"image_inputs": True})
    done = _generate_with_progress(worker, request)
    _save(options.output, done, parameters)
    if has_diagnostics:
        warnings = list_request_warnings(parameters, settings.cache, info.vocabulary)
        stdout.print_json(data=diagnostics_object(done.diagnostics, warnings))
    stdout.print(f"{options.output} ({done.width_px}x{done.height_px}, seed {done.seed})")


def to_request(
    options: GenerateOptions, settings: Settings, info: CheckpointInfo
) -> tuple[ImageInference, ImageRequest]:
    """Return the parameters and the request that the server would make of the same values.

    Raises:
        CommandError: the server would refuse them; the message names the option.
        InputImageError: an input image cannot be used; the message has its file's name.
    """
    if options.align and not options.images:
        raise CommandError("--align is about input images; give one with --image, or leave it out")
    files = read_input_files(options.images, info, settings.worker.checkpoint)
    # The API has no guidance of 1; it turns guidance off here.
    is_unguided = options.guidance == 1
    try:
        parameters = new_image_inference(
            settings.api.model, _list_values(options, settings), info.default_steps
        )
        found = check_parameters(parameters, "auto", info)
        check_lengths(parameters, info, found, files.sides_wh)
    except TaskError as error:
        raise CommandError(_in_options(error.message)) from None
    size_px = None if found is None else (found.width_px, found.height_px)
    seeds = image_seeds(parameters.seed, 1)
    request = to_image_request(
        parameters,
        size_px,
        seeds,
        settings.cache,
        settings.api.default_guidance,
        images=files.contents,
    )
    return parameters, replace(request, guidance=1.0) if is_unguided else request


def _list_values(options: GenerateOptions, settings: Settings) -> dict[str, Any]:
    """Return the parameters of the API that the options give."""
    size = options.size or settings.api.default_size
    width, height = (None, None) if size == "auto" else parse_size(size)
    values = {
        "positivePrompt": options.prompt,
        "negativePrompt": options.negative,
        "width": width,
        "height": height,
        "steps": options.steps,
        "CFGScale": None if options.guidance == 1 else options.guidance,
        "seed": options.seed,
        "scheduler": options.scheduler,
        "outputFormat": FORMATS[options.output.suffix.lower()],
        "outputQuality": options.quality,
        "acceleration": options.acceleration,
        "acceleratorOptions": _accelerator_options(options),
        "hunyuan": {
            "rewrite": options.rewrite,
            "systemPrompt": options.system_prompt,
            "align": options.align,
            "guidance": parse_guidance_options(options.guidance_options),
        },
    }
    return {name: value for name, value in values.items() if value is not None}


def _accelerator_options(options: GenerateOptions) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if options.tea_cache is not None:
        values |= {"teaCache": True, "teaCacheDistance": options.tea_cache}
    if options.fb_cache is not None:
        values |= {"fbCache": True, "fbCacheThreshold": options.fb_cache}
    return values


def _in_options(message: str) -> str:
    """Return a message of the API with the names of options instead of parameters."""
    for name, option in _OPTIONS.items():
        message = message.replace(f"'{name}' parameter", option).replace(f"'{name}'", option)
    return message.replace("width/height parameters", "--size")


def _generate_with_progress(settings: PipelineSettings, request: ImageRequest) -> ImageDone:
    """Load the checkpoint, generate the request's one image, and show how far both are."""
    from pipeline.generate import generate as generate_events
    from pipeline.load import load_pipeline
    from tools.progress import megabytes

    with progress_bar() as report:
        pipeline = load_pipeline(settings, megabytes(report, "loading"))
        num_shown = 0
        for event in generate_events(pipeline, request):
            if isinstance(event, StepDone):
                report("generating", event.step, event.num_steps)
            elif isinstance(event, TextWritten):
                stderr.print(event.text[num_shown:], end="")
                num_shown = len(event.text)
            elif isinstance(event, ImageDone):
                return event
    raise AssertionError("a request ends with its image, or with an error that is raised")


def _save(path: Path, done: ImageDone, parameters: ImageInference) -> None:
    from pipeline.encode import encode_image

    path.write_bytes(
        encode_image(done.pixels_yx3, parameters.outputFormat, parameters.outputQuality)
    )
