"""`hyimage bench`: what is measured, as ratios within one run."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cli.bench.adherence import bench_adherence
from cli.options import CheckpointOption, ConfigOption, read_settings, reported_errors

bench = typer.Typer(no_args_is_help=True, help="Measure, as ratios within one run.")
bench.command("adherence")(bench_adherence)


@bench.command("step")
def bench_step(
    hidden: Annotated[int, typer.Option(help="Model width.", min=64)] = 512,
    layers: Annotated[int, typer.Option(min=1)] = 8,
    experts: Annotated[int, typer.Option(min=2)] = 64,
    top_k: Annotated[int, typer.Option(help="Experts per token.", min=1)] = 8,
    image_tokens: Annotated[int, typer.Option(min=16)] = 1024,
    rows: Annotated[int, typer.Option(help="2 = one image with guidance.", min=1)] = 2,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option()] = "cpu",
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write figures here.")
    ] = None,
) -> None:
    """Time a denoising step against the bare products and attention calls of the same shapes."""
    from tools.bench.step import StepBench, run_step_bench, write_result

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
    """Time everything but generation, beside a bare FastAPI route that validates the same body."""
    from tools.bench.serve import run_serve_bench, write_result

    console = Console(highlight=False)
    with reported_errors(), console.status(f"3 rounds of {num_requests} requests to two servers"):
        result = run_serve_bench(read_settings(config, checkpoint), num_requests, concurrency)
    console.print(
        f"one request   {result.ours_ms:8.2f} ms   bare route {result.bare_ms:8.2f} ms\n"
        f"many at once  {result.ours_per_s:8.0f} /s   bare route {result.bare_per_s:8.0f} /s\n"
        f"ratio         {result.ratio:8.2f}"
    )
    if json_file is not None:
        write_result(json_file, result)


@bench.command("text")
def bench_text(
    batch: Annotated[int, typer.Option(help="Texts written together.", min=1)] = 1,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens before the text.", min=1)] = 200,
    tokens: Annotated[int, typer.Option(help="Tokens to write.", min=4)] = 64,
    config: ConfigOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Measure text decoding: tokens a second, share of matrix products, what reuse saves."""
    from pipeline.load import load_pipeline
    from tools.bench.text import run_text_bench

    with reported_errors():
        pipeline = load_pipeline(read_settings(config, checkpoint).worker)
        result = run_text_bench(pipeline, batch, prompt_tokens, tokens)
    Console(highlight=False).print(
        f"{result.tokens_per_s:.0f} tokens/s ({batch} together, {1000 * result.step_s:.1f} ms a "
        f"step); matrix products and attention alone {1000 * result.bare_s:.1f} ms, "
        f"{result.share_bare:.0%} of it\n"
        f"the image's prompt after the text: {1000 * result.recomputed_s:.1f} ms anew, "
        f"{1000 * result.reused_s:.1f} ms from the text's keys and values"
    )


@bench.command("quantization")
def bench_quantization(
    count: Annotated[int, typer.Option(help="Prompts to generate.", min=1)] = 20,
    guidance: Annotated[float, typer.Option("--cfg", help="Guidance.", min=1)] = 7.0,
    steps: Annotated[int, typer.Option(min=1, max=100)] = 30,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
    config: ConfigOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Compare images of fp8, int8 and int4 weights with those of bfloat16 ones: PSNR and SSIM."""
    from tools.bench.images import read_prompts, square_request
    from tools.bench.quantization import run_quantization_bench, write_rows

    console = Console(highlight=False)
    with reported_errors(), console.status(f"{5 * count} images of {steps} steps") as status:
        texts = read_prompts(None, count)
        rows = run_quantization_bench(
            read_settings(config, checkpoint).worker,
            lambda side: [
                square_request(side, text, seed, guidance, steps) for seed, text in enumerate(texts)
            ],
            status.update,
        )
    console.print("weights    GB       PSNR    worst   SSIM    s/image")
    for row in rows:
        console.print(
            f"{row.scheme:9s} {row.num_bytes / 1e9:7.3f} {row.psnr:7.1f} {row.least_psnr:7.1f} "
            f"{row.ssim:7.3f} {row.seconds:7.2f}"
        )
    if json_file is not None:
        write_rows(json_file, rows)


@bench.command("load")
def bench_load(
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    limit_gb: Annotated[
        float | None, typer.Option(help="Also draw with no more memory than this.", min=0.1)
    ] = None,
    steps: Annotated[int, typer.Option(help="Of that image.", min=1)] = 2,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write figures here.")] = None,
    config: ConfigOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Time loading a checkpoint beside bare reads of its files, and tell the memory it takes.

    With --limit-gb the settings worker.device_memory_gb and worker.offload are tested.
    """
    from tools.bench.load import run_limited, run_load_bench, write_result

    console = Console(highlight=False)
    with reported_errors(), console.status("loading") as status:
        worker = read_settings(config, checkpoint).worker
        roomy = worker.model_copy(update={"device_memory_gb": 0.0})
        result = run_load_bench(roomy, rounds, status.update)
        gb = result.file_bytes / 1e9
        console.print(
            f"bare reads  {gb / result.bare_s:7.2f} GB/s  ({gb:.2f} GB in {result.bare_s:.2f} s)\n"
            f"loading     {gb / result.load_s:7.2f} GB/s  ({result.load_s:.2f} s)\n"
            f"ratio       {result.ratio:7.2f}       (1 = as fast as the files can be read)\n"
            f"parameters  {result.parameter_bytes / 1e9:7.2f} GB\n"
            f"peak        {result.peak_bytes / 1e9:7.2f} GB    of the process, beyond its start"
        )
        limited = None
        if limit_gb is not None:
            status.update(f"generating {steps} steps within {limit_gb} GB")
            limited = run_limited(worker, int(limit_gb * 1e9), steps)
            console.print(
                f"within {limit_gb:g} GB: loaded in {limited.load_s:.1f} s, "
                f"{limited.step_s:.1f} s a step, "
                f"{limited.peak_bytes / 1e9:.2f} GB resident at most (with libraries)"
            )
    if json_file is not None:
        write_result(json_file, result, limited)


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
    """Compare schedulers, steps and step caches with uncached images: PSNR, SSIM, evaluations."""
    from tools.bench.quality_report import run_quality

    with reported_errors():
        run_quality(
            read_settings(config, checkpoint),
            prompts=prompts,
            count=count,
            guidance=guidance,
            base_steps=steps,
            with_schedulers=schedulers,
            csv_file=csv_file,
            json_file=json_file,
            chart=chart,
        )
