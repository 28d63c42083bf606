"""`hyimage`: serve, generate, verify, keys, bench. Parses, loads settings; decides nothing."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cli.bench.app import bench
from cli.options import CheckpointOption, ConfigOption, read_settings, reported_errors
from pipeline.request import Rewrite
from server.settings import SettingsError, load_settings

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="HunyuanImage-3.0 on your own machines, behind Runware's imageInference API.",
)
app.add_typer(bench, name="bench")
keys = typer.Typer(
    no_args_is_help=True, help="API keys; without any, everybody on this machine may."
)
app.add_typer(keys, name="keys")


@app.command()
def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    checkpoint: CheckpointOption = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Address of a Ray cluster (auto, HOST:6379, ray://HOST:10001): serve there, or "
            "replace what serves there replica by replica, and return. See docs/cluster.md."
        ),
    ] = None,
    down: Annotated[
        bool, typer.Option("--down", help="With --cluster: stop serving there.")
    ] = False,
) -> None:
    """Serve the API: POST /v1, GET /ready, interactive documentation at /docs."""
    with reported_errors():
        settings = load_settings(
            config, server__host=host, server__port=port, worker__checkpoint=checkpoint
        )
        if cluster is not None:
            from server.cluster.deploy import deploy, take_down

            take_down(cluster) if down else deploy(settings, cluster)
            return
        if down:
            raise SettingsError("--down needs --cluster: a server here is stopped with Ctrl-C")
        from server.serve import serve_forever

        serve_forever(settings)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to generate.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="jpg, png or webp file.")] = Path(
        "image.png"
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
        bool, typer.Option("--diagnostics", help="Print how it was generated, as JSON.")
    ] = False,
    config: ConfigOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Generate one image without a server."""
    from cli.generate import Sampling, generate_image

    sampling = Sampling(
        num_steps=steps,
        guidance=guidance,
        scheduler=scheduler,
        acceleration=acceleration,
        tea_distance=tea_cache,
        fb_threshold=fb_cache,
    )
    with reported_errors():
        generate_image(
            read_settings(config, checkpoint),
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
        str,
        typer.Option(
            help="single, layers2, or processes over gloo: cfg2, tensor2, cfg2xtensor2; with "
            "-expert behind it, experts are held whole."
        ),
    ] = "single",
) -> None:
    """Compare this implementation with recorded tensors, in float32; exit 1 on any difference."""
    from tools.verify.report import Request, verify_recording

    with reported_errors():
        is_ok = verify_recording(
            Request(
                checkpoint=checkpoint,
                recording=recording,
                only=frozenset(group or ()),
                failures_only=failures_only,
                mode=mode,
            )
        )
    raise typer.Exit(0 if is_ok else 1)


@app.command()
def plan(
    checkpoint: Annotated[Path, typer.Argument(help="A folder with config.json, or the file.")],
    gpus: Annotated[str, typer.Option(help="COUNTxMEMORY of equal devices.")] = "4x80GB",
    images: Annotated[int, typer.Option(help="Images generated together.", min=1)] = 1,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of a prompt.", min=1)] = 1024,
    quantization: Annotated[
        str, typer.Option(help="none, fp8, int8 or int4; auto rounds weights only if it must.")
    ] = "auto",
    vae_dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
) -> None:
    """Tell which modes fit on your GPUs before anything is loaded; exit 1 if none does."""
    from tools.plan import print_plan

    with reported_errors():
        fits = print_plan(checkpoint, gpus, images, prompt_tokens, quantization, vae_dtype)
    raise typer.Exit(0 if fits else 1)


@app.command()
def quantize(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    folder: Annotated[Path, typer.Argument(help="The new folder; it must not exist.")],
    scheme: Annotated[str, typer.Option(help="fp8, int8 or int4.")] = "int8",
) -> None:
    """Write a checkpoint with rounded weights: half the size (int8, fp8) or 31 % of it (int4).

    The experts, attention and shared experts are rounded; router, norms, embeddings, patch layers,
    head and VAE are copied. Needs memory for one shard, and the time to read and write all of it.
    """
    from tools.quantize import quantize_checkpoint

    with reported_errors():
        quantize_checkpoint(checkpoint, folder, scheme)


@app.command()
def record(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    folder: Annotated[Path, typer.Argument(help="Where the recording is written.")],
) -> None:
    """Record this implementation's own results of a checkpoint, for `hyimage verify` to guard.

    It tells later that results have changed, not that they are right: only recordings of the
    official reference do that.
    """
    from pipeline.load import load_pipeline
    from tools.verify.record import record_checkpoint

    with reported_errors():
        settings = load_settings(None, worker__checkpoint=str(checkpoint))
        record_checkpoint(load_pipeline(settings.worker), folder)
    typer.echo(f"recorded into {folder}; compare: hyimage verify {checkpoint} {folder}")


@app.command()
def calibrate(
    checkpoint: Annotated[Path, typer.Argument(help="Its folder gets step_cache.json.")],
    num_prompts: Annotated[
        int, typer.Option("--num-prompts", help="Images to record; 50 or more.", min=3)
    ] = 54,
    prompts: Annotated[Path | None, typer.Option(help="Your own prompts, one a line.")] = None,
    config: ConfigOption = None,
) -> None:
    """Measure how steps change, so that the step caches reuse the right ones.

    Generates the prompts without reuse, fits the output's change to TeaCache's signal, then
    generates eight of them with rising thresholds. Writes step_cache.json, and a chart of it,
    into the checkpoint's folder. Takes as long as some 170 images of 30 steps.
    """
    from tools.calibrate import calibrate_checkpoint

    with reported_errors():
        calibrate_checkpoint(read_settings(config, str(checkpoint)), num_prompts, prompts)


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
