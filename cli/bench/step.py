"""`hyimage bench step`: a denoising step against its bare matrix products and attention calls."""

from dataclasses import asdict
from typing import Annotated

import typer

from cli.console import spinner, stdout, write_json
from cli.options import Dtype, JsonOption, Scheme, reported_errors


def bench_step(
    hidden: Annotated[int, typer.Option(help="Model width.", min=64)] = 512,
    head_dim: Annotated[int, typer.Option(help="Width of a head; 0: 64.", min=0)] = 0,
    kv_heads: Annotated[int, typer.Option(help="0: a quarter of the heads.", min=0)] = 0,
    layers: Annotated[int, typer.Option(help="Layers of the model.", min=1)] = 8,
    experts: Annotated[int, typer.Option(help="Experts of a layer.", min=2)] = 64,
    top_k: Annotated[int, typer.Option(help="Experts per token.", min=1)] = 8,
    image_tokens: Annotated[int, typer.Option(help="Tokens of an image.", min=16)] = 1024,
    rows: Annotated[int, typer.Option(help="2 = one image with guidance.", min=1)] = 2,
    dtype: Annotated[Dtype, typer.Option(help="Of the weights.")] = "float32",
    quantization: Annotated[Scheme | None, typer.Option(help="Of the layers' weights.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    repeats: Annotated[int, typer.Option(help="Steps that are timed.", min=1)] = 5,
    json_file: JsonOption = None,
) -> None:
    """Time a denoising step against the bare products and attention calls of the same shapes.

    Example: hyimage bench step --layers 2 --repeats 3
    """
    with reported_errors():
        from tools.bench.step import StepBench, run_step_bench

        settings = StepBench(
            hidden=hidden,
            head_dim=head_dim,
            kv_heads=kv_heads,
            layers=layers,
            experts=experts,
            top_k=top_k,
            image_tokens=image_tokens,
            rows=rows,
            dtype=dtype,
            quantization=quantization or "none",
            device=device,
            repeats=repeats,
        )
        with spinner(f"building {layers} layers of width {hidden}, then {repeats} steps"):
            result = run_step_bench(settings)
        stdout.print(
            f"step        {result.step_s * 1e3:9.1f} ms\n"
            f"bare calls  {result.bare_s * 1e3:9.1f} ms  ({result.num_bare_calls} products and "
            f"attention calls)\n"
            f"ratio       {result.ratio:9.3f}     (1 = nothing but mathematics)\n"
            f"parameters  {result.parameter_bytes / 2**20:9.1f} MiB\n"
            f"peak extra  {result.peak_extra_bytes / 2**20:9.1f} MiB during a step\n"
            f"threads     {result.num_threads:9d}"
        )
        write_json(json_file, {**asdict(settings), **asdict(result)})
