"""`hyimage plan`: which modes fit on given devices, at what speed, and how to start the fastest."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from cli.console import spinner, stdout, write_json
from cli.options import JsonOption, Quantization, RequiredCheckpoint, reported_errors
from model.config_file import load_config
from model.planning.devices import Devices, parse_devices
from pipeline.input_image import MAX_IMAGES

CardName = Literal["H100", "H200", "B200", "A100", "RTX PRO 6000", "RTX 4090"]

if TYPE_CHECKING:
    from model.planning.memory_plan import RankPlan
    from tools.plan import PlanRequest


def plan(
    checkpoint: RequiredCheckpoint,
    gpus: Annotated[str, typer.Option(help="COUNTxMEMORY of equal devices.")] = "4x80GB",
    card: Annotated[
        CardName | None, typer.Option(help="Whose rates count; by default by the memory.")
    ] = None,
    images: Annotated[int, typer.Option(help="Images generated together.", min=1)] = 1,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of a prompt.", min=1)] = 1024,
    input_images: Annotated[
        int,
        typer.Option(help="Input images of a prompt, of the largest size.", min=0, max=MAX_IMAGES),
    ] = 0,
    quantization: Annotated[
        Quantization, typer.Option(help="Of the weights; auto: only if nothing else fits.")
    ] = "auto",
    vae_dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Of the VAE.")
    ] = "bfloat16",
    expert_parallel: Annotated[
        bool, typer.Option("--expert-parallel", help="Tensor ranks hold whole experts.")
    ] = False,
    is_compiled: Annotated[
        bool,
        typer.Option(
            "--compiled/--no-compiled", help="Small operations fused, which takes a compiler."
        ),
    ] = True,
    detail: Annotated[
        bool, typer.Option("--detail", help="Also list the operations of a step by kind.")
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """List which modes fit on your GPUs before anything is loaded; exit 1 if none does.

    Only config.json is read; --checkpoint may name that file alone. All figures are counted, none
    is measured: the code runs on shapes alone, and a card's rates are stated, not found.

    Example: hyimage plan --checkpoint path/to/HunyuanImage-3.0 --gpus 8x24GB
    """
    with reported_errors():
        devices = parse_devices(gpus, card, is_compiled)
        config = load_config(checkpoint)
        from tools.plan import PlanRequest, fastest_fitting, figures_of, list_plans

        request = PlanRequest(
            config=config,
            devices=devices,
            num_images=images,
            prompt_tokens=prompt_tokens,
            quantization=quantization,
            vae_dtype=vae_dtype,
            expert_parallel=expert_parallel,
            num_input_images=input_images,
        )
        with spinner("running a step of each mode on the meta device"):
            plans = list(list_plans(request))
        write_json(json_file, figures_of(plans, devices))
        stdout.print(_table(plans, devices))
        for row in plans if detail else ():
            stdout.print(_detail(row))
        _print_legend(request)
        best = fastest_fitting(plans, devices)
        if best is None:
            stdout.print(
                Text.assemble(
                    ("No mode fits.", "red"),
                    " More devices, or larger ones; or --vae-dtype bfloat16.",
                )
            )
            raise typer.Exit(1)
        folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
        stdout.print(f"\n{commands_of(best, request, folder)}")


def commands_of(best: RankPlan, request: PlanRequest, checkpoint: Path) -> str:
    """Return the command lines that serve a checkpoint as planned."""
    from tools.plan import environment_of, settings_of

    served, lines = checkpoint, []
    if best.scheme != "none":
        served = checkpoint.with_name(f"{checkpoint.name}-{best.scheme}")
        copy = ["--checkpoint", str(checkpoint), str(served), "--scheme", best.scheme]
        lines = [shlex.join(["hyimage", "quantize", *copy])]
    variables = environment_of(settings_of(best, request, str(served)))
    assignments = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    serve = shlex.join(["hyimage", "serve", "--checkpoint", str(served)])
    return "\n".join([*lines, " ".join([*assignments, serve])])


def _table(plans: list[RankPlan], devices: Devices) -> Table:
    reads_images = any(plan.reading for plan in plans)
    headings = (
        "mode", "ranks", "quantized", "weights", "prompt", "step", "cache", "decode",
        *(["reading"] if reads_images else []), "peak", "fits", "offload", "kernels", "s/step",
        "roofline",
    )  # fmt: skip
    table = Table(*headings)
    for row in plans:
        sizes = (
            row.parameters, row.prefix, row.activations, row.cache_residuals, row.vae,
            *([row.reading] if reads_images else []), row.total,
        )  # fmt: skip
        table.add_row(
            row.mode,
            str(row.num_ranks),
            "" if row.scheme == "none" else row.scheme,
            *(f"{size / 1e9:.2f}" for size in sizes),
            Text("yes", style="green") if row.fits(devices) else "no",
            f"{row.bytes_fetched / 1e9:.1f}" if row.bytes_fetched else "",
            str(row.step.num_kernels),
            f"{row.step_s:.3f}",
            f"{row.roofline_s:.3f}",
        )
    return table


def _detail(plan: RankPlan) -> Table:
    """Return the operations of a step by kind."""
    scheme = "" if plan.scheme == "none" else f", {plan.scheme}"
    table = Table("kind", "kernels", "ms", "GB", "TFLOP", title=f"{plan.mode}{scheme}, counted")
    rows = [(kind, k.num_kernels, k.seconds, k.bytes_moved, k.flops)
            for kind, k in plan.step.kinds.items()]  # fmt: skip
    whole = plan.step
    rows.append(("all", whole.num_kernels, whole.counted_s, whole.bytes_moved, whole.flops))
    for kind, num_kernels, seconds, num_bytes, flops in rows:
        tflop = f"{flops / 1e12:.1f}" if flops else ""
        table.add_row(
            kind, str(num_kernels), f"{seconds * 1e3:.1f}", f"{num_bytes / 1e9:.1f}", tflop
        )
    return table


def _input_note(request: PlanRequest) -> str:
    count = request.num_input_images
    if not count:
        return ""
    from model.planning.meta_step import count_input_tokens

    tokens = count_input_tokens(request.config)
    return (
        f" and {count} input image(s) of {tokens}, read by the vision tower and the VAE's encoder"
    )


def _print_legend(request: PlanRequest) -> None:
    from model.planning.memory_plan import USABLE

    fused = "fused" if request.devices.has_compiler else "one by one, as without a compiler"
    stdout.print(
        f"Memory of the fullest rank in GB: bfloat16 or quantized weights, a {request.vae_dtype} "
        f"VAE, the largest offered size, {request.num_images} image(s) at once, prompts of "
        f"{request.prompt_tokens} tokens{_input_note(request)}.\n"
        f"A mode fits below {USABLE:.0%} of a device.\n"
        "Kernels and seconds of a step are counted, not measured: the code runs on shapes alone, "
        f"at rates stated for one {request.devices.card.name} (--card), with small operations "
        f"{fused}; offloaded experts pass the link beside it. The roofline is the least that "
        "multiplying, reading the weights or the link takes at the data sheet's peaks."
    )
