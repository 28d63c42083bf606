"""`hyimage`: serve, generate, verify, keys, bench. Parses, loads settings; decides nothing."""

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from server.errors import TaskError
from server.messages import Rewrite
from server.settings import Settings, load_settings

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="HunyuanImage-3.0 on your own machines, behind Runware's imageInference API.",
)
bench = typer.Typer(no_args_is_help=True, help="Measure, as ratios within one run.")
app.add_typer(bench, name="bench")
keys = typer.Typer(
    no_args_is_help=True, help="API keys; without any, everybody on this machine may."
)
app.add_typer(keys, name="keys")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="TOML settings file, for example configs/tiny.toml."),
]
CheckpointOption = Annotated[
    str | None, typer.Option("--checkpoint", help="Folder with config.json and the weights.")
]


@app.command()
def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Serve the API: POST /v1, GET /ready, interactive documentation at /docs."""
    from server.serve import serve_forever

    with reported_errors():
        settings = load_settings(
            config, server__host=host, server__port=port, worker__checkpoint=checkpoint
        )
        serve_forever(settings)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="jpg, png or webp file.")] = Path(
        "picture.png"
    ),
    negative: Annotated[str | None, typer.Option(help="What to keep away from.")] = None,
    size: Annotated[
        str, typer.Option(help="auto (the model chooses) or WIDTHxHEIGHT, a trained size.")
    ] = "1024x1024",
    steps: Annotated[int, typer.Option(min=1, max=100)] = 20,
    guidance: Annotated[float, typer.Option(help="1 turns guidance off.", min=1, max=50)] = 7.0,
    seed: Annotated[int | None, typer.Option(help="Random if left out.", min=0)] = None,
    quality: Annotated[int, typer.Option(help="Of jpg and webp.", min=20, max=99)] = 95,
    rewrite: Annotated[
        Rewrite, typer.Option(help="Let an Instruct checkpoint rewrite the prompt first.")
    ] = "off",
    system_prompt: Annotated[
        str | None, typer.Option(help="Instead of the checkpoint's own.")
    ] = None,
    scheduler: Annotated[str, typer.Option(help="One of the API's names.")] = "Default",
    acceleration: Annotated[str, typer.Option(help="none, low, medium or high.")] = "medium",
    tea_cache: Annotated[
        float | None, typer.Option(help="TeaCache with this distance, 0 to 1.")
    ] = None,
    fb_cache: Annotated[
        float | None, typer.Option(help="FBCache with this threshold, 0 to 1.")
    ] = None,
    diagnostics: Annotated[
        bool, typer.Option("--diagnostics", help="Print how it was drawn, as JSON.")
    ] = False,
    config: ConfigOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Draw one picture without a server."""
    from server.generate import Sampling, generate_picture

    sampling = Sampling(
        num_steps=steps,
        guidance=guidance,
        scheduler=scheduler,
        acceleration=acceleration,
        tea_distance=tea_cache,
        fb_threshold=fb_cache,
    )
    with reported_errors():
        generate_picture(
            _settings(config, checkpoint),
            prompt=prompt,
            negative=negative,
            size=size,
            sampling=sampling,
            seed=seed,
            quality=quality,
            rewrite=rewrite,
            system_prompt=system_prompt,
            output=output,
            has_diagnostics=diagnostics,
        )


@app.command()
def verify(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint folder the recording was made of.")
    ],
    recording: Annotated[Path, typer.Argument(help="Folder with manifest.json.")],
    group: Annotated[
        list[str] | None, typer.Option(help="Check only these groups or cases.")
    ] = None,
    failures_only: Annotated[
        bool, typer.Option("--failures-only", help="Show only the rows that failed.")
    ] = False,
    mode: Annotated[
        str, typer.Option(help="single, cfg2, tensor2 or cfg2xtensor2: processes over gloo.")
    ] = "single",
) -> None:
    """Compare this implementation with recorded tensors, in float32; exit 1 on any difference."""
    from server.verify.report import Request, parse_mode, verify_recording

    with reported_errors():
        cfg_ranks, tensor_ranks = parse_mode(mode)
        is_ok = verify_recording(
            Request(
                checkpoint=checkpoint,
                recording=recording,
                only=frozenset(group or ()),
                failures_only=failures_only,
                cfg_ranks=cfg_ranks,
                tensor_ranks=tensor_ranks,
            )
        )
    raise typer.Exit(0 if is_ok else 1)


@app.command()
def plan(
    checkpoint: Annotated[Path, typer.Argument(help="A folder with config.json, or the file.")],
    gpus: Annotated[str, typer.Option(help="COUNTxMEMORY of equal devices.")] = "4x80GB",
    images: Annotated[int, typer.Option(help="Pictures drawn together.", min=1)] = 1,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of a prompt.", min=1)] = 1024,
) -> None:
    """Tell which modes fit on your GPUs before anything is loaded; exit 1 if none does."""
    from server.plan import print_plan

    with reported_errors():
        fits = print_plan(checkpoint, gpus, images, prompt_tokens)
    raise typer.Exit(0 if fits else 1)


@app.command()
def record(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    folder: Annotated[Path, typer.Argument(help="Where the recording is written.")],
) -> None:
    """Record this implementation's own results of a checkpoint, for `hyimage verify` to guard.

    It tells later that results have changed, not that they are right: only recordings of the
    official reference do that.
    """
    from server.verify.record import record_checkpoint
    from server.worker.parts import build_parts

    with reported_errors():
        settings = load_settings(None, worker__checkpoint=str(checkpoint))
        record_checkpoint(build_parts(settings.worker), folder)
    typer.echo(f"recorded into {folder}; compare: hyimage verify {checkpoint} {folder}")


@app.command()
def calibrate(
    checkpoint: Annotated[Path, typer.Argument(help="Its folder gets step_cache.json.")],
    num_prompts: Annotated[
        int, typer.Option("--num-prompts", help="Pictures to record; 50 or more.", min=3)
    ] = 54,
    prompts: Annotated[Path | None, typer.Option(help="Your own prompts, one a line.")] = None,
    config: ConfigOption = None,
) -> None:
    """Measure how steps change, so that the step caches reuse the right ones.

    Draws the prompts without reuse, fits how TeaCache's signal foretells the output, then draws
    eight of them with rising thresholds. Writes step_cache.json, and a picture of the curve, into
    the checkpoint's folder. Takes as long as some 170 pictures of 30 steps.
    """
    from server.calibrate import calibrate_checkpoint

    with reported_errors():
        calibrate_checkpoint(_settings(config, str(checkpoint)), num_prompts, prompts)


def _settings(config: Path | None, checkpoint: str | None) -> Settings:
    return load_settings(config, worker__checkpoint=checkpoint)


class reported_errors:  # noqa: N801 -- used as a `with` statement, like contextlib's
    """Turn what a user can cause into one line and exit status 2; all else is a traceback."""

    def __enter__(self) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        logging.getLogger("httpx").setLevel(logging.WARNING)  # its lines hold whole URLs

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, TaskError | ValueError) and hasattr(error, "code"):
            Console(stderr=True).print(f"[red]error[/red] {error}", highlight=False)
            raise typer.Exit(2) from None


@keys.command("add")
def keys_add(
    name: Annotated[str, typer.Argument(help="Whose key it is; shows up in logs.")],
    config: ConfigOption = None,
) -> None:
    """Make a key and print it once; only its hash is kept."""
    from server.api.auth import add_key

    with reported_errors():
        key = add_key(Path(load_settings(config).keys.file), name)
        typer.echo(key)


@keys.command("list")
def keys_list(config: ConfigOption = None) -> None:
    """Print the names of all keys."""
    from server.api.auth import read_key_file

    with reported_errors():
        for name in sorted(read_key_file(Path(load_settings(config).keys.file)).values()):
            typer.echo(name)


@keys.command("remove")
def keys_remove(name: Annotated[str, typer.Argument()], config: ConfigOption = None) -> None:
    """Forget a key; a running server knows it until it is restarted."""
    from server.api.auth import remove_key

    with reported_errors():
        remove_key(Path(load_settings(config).keys.file), name)


@bench.command("step")
def bench_step(
    hidden: Annotated[int, typer.Option(help="Model width.", min=64)] = 512,
    layers: Annotated[int, typer.Option(min=1)] = 8,
    experts: Annotated[int, typer.Option(min=2)] = 64,
    top_k: Annotated[int, typer.Option(help="Experts per token.", min=1)] = 8,
    image_tokens: Annotated[int, typer.Option(min=16)] = 1024,
    rows: Annotated[int, typer.Option(help="2 = one picture with guidance.", min=1)] = 2,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option()] = "cpu",
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write figures here.")
    ] = None,
) -> None:
    """Time a denoising step against the bare products and attention calls of the same shapes."""
    from server.bench.step import StepBench, run_step_bench, write_result

    settings = StepBench(
        hidden=hidden,
        layers=layers,
        experts=experts,
        top_k=top_k,
        image_tokens=image_tokens,
        rows=rows,
        dtype=dtype,
        device=device,
        repeats=repeats,
    )
    console = Console(highlight=False)
    with console.status(f"building {layers} layers of width {hidden}, then {repeats} steps"):
        result = run_step_bench(settings)
    console.print(
        f"step        {result.step_s * 1e3:9.1f} ms\n"
        f"bare calls  {result.bare_s * 1e3:9.1f} ms  ({result.num_bare_calls} products and "
        f"attention calls)\n"
        f"ratio       {result.ratio:9.3f}     (1 = nothing but mathematics)\n"
        f"parameters  {result.parameter_bytes / 2**20:9.1f} MiB\n"
        f"peak extra  {result.peak_extra_bytes / 2**20:9.1f} MiB during a step\n"
        f"threads     {result.num_threads:9d}"
    )
    if json_file is not None:
        write_result(json_file, settings, result)


@bench.command("serve")
def bench_serve(
    num_requests: Annotated[int, typer.Option("--requests", min=10)] = 500,
    concurrency: Annotated[int, typer.Option(min=1)] = 16,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write figures here.")
    ] = None,
    config: ConfigOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Time everything but the drawing, beside a bare FastAPI route that validates the same body."""
    from server.bench.serve import run_serve_bench, write_result

    console = Console(highlight=False)
    with reported_errors(), console.status(f"3 rounds of {num_requests} requests to two servers"):
        result = run_serve_bench(_settings(config, checkpoint), num_requests, concurrency)
    console.print(
        f"one request   {result.ours_ms:8.2f} ms   bare route {result.bare_ms:8.2f} ms\n"
        f"many at once  {result.ours_per_s:8.0f} /s   bare route {result.bare_per_s:8.0f} /s\n"
        f"ratio         {result.ratio:8.2f}"
    )
    if json_file is not None:
        write_result(json_file, result)


@bench.command("adherence")
def bench_adherence(
    count: Annotated[int, typer.Option(help="Held-out captions per setting.", min=1)] = 24,
    cfg: Annotated[list[float] | None, typer.Option(help="Guidance; may be repeated.")] = None,
    steps: Annotated[list[int] | None, typer.Option(help="Steps; may be repeated.")] = None,
    negative: Annotated[
        bool, typer.Option("--negative", help="Also measure what a negative prompt takes away.")
    ] = False,
    auto: Annotated[bool, typer.Option("--auto", help="Also measure the size `auto`.")] = False,
    sheet: Annotated[
        Path | None, typer.Option(help="Write a sheet of pictures of the first setting here.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write figures here.")
    ] = None,
    config: ConfigOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Score held-out captions drawn by the trained tiny checkpoint (fetches its artwork)."""
    from server.bench.adherence_report import run_adherence

    with reported_errors():
        run_adherence(
            _settings(config, checkpoint),
            count=count,
            guidances=tuple(cfg or (5.0,)),
            step_counts=tuple(steps or (30,)),
            has_negative=negative,
            has_auto=auto,
            sheet=sheet,
            json_file=json_file,
        )


@bench.command("text")
def bench_text(
    batch: Annotated[int, typer.Option(help="Texts written together.", min=1)] = 1,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens before the text.", min=1)] = 200,
    tokens: Annotated[int, typer.Option(help="Tokens to write.", min=4)] = 64,
    config: ConfigOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Measure text decoding: tokens a second, share of matrix products, what reuse saves."""
    from server.bench.text import run_text_bench
    from server.worker.parts import build_parts

    with reported_errors():
        parts = build_parts(_settings(config, checkpoint).worker)
        result = run_text_bench(parts, batch, prompt_tokens, tokens)
    Console(highlight=False).print(
        f"{result.tokens_per_s:.0f} tokens/s ({batch} together, {1000 * result.step_s:.1f} ms a "
        f"step); matrix products and attention alone {1000 * result.bare_s:.1f} ms, "
        f"{result.share_bare:.0%} of it\n"
        f"the picture's prompt after the text: {1000 * result.recomputed_s:.1f} ms anew, "
        f"{1000 * result.reused_s:.1f} ms from the text's keys and values"
    )


@bench.command("quality")
def bench_quality(
    prompts: Annotated[
        Path | None, typer.Argument(help="One prompt a line; the product's own list if left out.")
    ] = None,
    count: Annotated[int, typer.Option(help="Prompts to use.", min=1)] = 20,
    guidance: Annotated[float, typer.Option("--cfg", help="Guidance.", min=1)] = 7.0,
    steps: Annotated[int, typer.Option(help="Base number of steps.", min=4, max=100)] = 30,
    schedulers: Annotated[bool, typer.Option(help="Also measure other solvers than Euler.")] = True,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the rows here.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
    chart: Annotated[Path | None, typer.Option(help="Draw PSNR against evaluations here.")] = None,
    config: ConfigOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Compare schedulers, steps and step caches with uncached pictures: PSNR, SSIM, evaluations."""
    from server.bench.quality_report import run_quality

    with reported_errors():
        run_quality(
            _settings(config, checkpoint),
            prompts=prompts,
            count=count,
            guidance=guidance,
            base_steps=steps,
            with_schedulers=schedulers,
            csv_file=csv_file,
            json_file=json_file,
            chart=chart,
        )


@app.command("train-tiny")
def train_tiny_checkpoint(
    folder: Annotated[
        Path, typer.Argument(help="Where all state lies; start again with it to go on.")
    ] = Path("~/.cache/hyimage-training"),
) -> None:
    """Make the tiny checkpoint from nothing: artwork, VAE, transformer, export. Takes hours."""
    from training.recipe import train_tiny

    with reported_errors():
        train_tiny(folder.expanduser(), report=Console(highlight=False).print)


if __name__ == "__main__":
    app()
