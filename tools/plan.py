"""`hyimage plan`: which modes fit on given devices, at what speed, and how to start them."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from model.config import ModelConfig
from model.config_file import load_config
from model.errors import ConfigError
from model.loading.options import LoadOptions
from model.planning.memory_plan import (
    USABLE,
    Devices,
    RankPlan,
    fit_rank,
    list_modes,
    parse_devices,
    plan_layers,
    plan_rank,
)
from model.planning.step_memory import Workload
from model.quantization.scheme import SCHEMES

WIDTH = 120  # of the table where no terminal tells
CHOICES = ("auto", "none", *SCHEMES)


def is_terminal() -> bool:
    """Return whether the table goes to a person's screen."""
    return sys.stdout.isatty()


def print_plan(
    folder: Path, gpus: str, images: int, prompt_tokens: int, quantization: str, vae_dtype: str
) -> bool:
    """Print a row per mode and the command of the fastest that fits; return whether one does.

    Raises:
        ConfigError: the folder's config.json, the devices or an option are not usable.
    """
    config, devices = load_config(folder), parse_devices(gpus)
    if quantization not in CHOICES:
        raise ConfigError(f"--quantization {quantization!r} is none of {', '.join(CHOICES)}")
    if vae_dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"--vae-dtype {vae_dtype!r} is neither float32 nor bfloat16")
    options = LoadOptions(dtype=torch.bfloat16, vae_dtype=getattr(torch, vae_dtype))
    workload = Workload(
        images=images, prompt_tokens=prompt_tokens, is_guided=not config.is_guidance_distilled
    )
    errors = Console(stderr=True)
    with errors.status("running a step of each mode on the meta device"):
        plans = list(_list_plans(config, devices, options, workload, quantization))
    console = Console(highlight=False, soft_wrap=True, width=None if is_terminal() else WIDTH)
    console.print(_table(plans, devices))
    console.print(
        f"Memory of the fullest rank in GB: bfloat16 or rounded weights, a {vae_dtype} VAE, the "
        f"largest offered size, {images} image(s) at once, prompts of {prompt_tokens} tokens.\n"
        f"A mode fits below {USABLE:.0%} of a device. Times are a roofline of an H100's data sheet "
        f"at {devices.efficiency:.0%} of its peak, and of PCIe 5 for what is fetched: not measured."
    )
    fitting = [plan for plan in plans if plan.fits(devices)]
    if not fitting:
        console.print(
            "[red]No mode fits.[/red] More devices, or larger ones; or --vae-dtype bfloat16."
        )
        return False
    console.print(f"\n{_command(folder, min(fitting, key=_worth), devices, vae_dtype)}")
    return True


def _list_plans(
    config: ModelConfig,
    devices: Devices,
    options: LoadOptions,
    workload: Workload,
    quantization: str,
) -> Iterator[RankPlan]:
    """Yield every mode as asked for; by default weights are rounded only where nothing else fits.

    One device may also fetch experts as it goes.
    """
    fits = False
    for name in ("none", *SCHEMES) if quantization == "auto" else (quantization,):
        if fits:
            return
        scheme = SCHEMES.get(name)
        modes = list_modes(config, devices.count)
        plans = [plan_rank(config, c, t, devices, options, workload, scheme) for c, t in modes]
        if devices.count > 1:
            plans.append(plan_layers(config, devices, options, workload, scheme))
        fits = any(plan.fits(devices) for plan in plans)
        yield from plans
        if not fits:
            fetching = fit_rank(config, devices, options, workload, scheme)
            if fetching is not None:
                yield replace(fetching, mode="fetching")


def _worth(plan: RankPlan) -> tuple[float, int]:
    """Return a key: speed to a twentieth of a second, then exactness."""
    return round(plan.step_s * 20), ("none", "int8", "fp8", "int4").index(plan.scheme)


def _table(plans: list[RankPlan], devices: Devices) -> Table:
    headings = (
        "mode", "ranks", "rounded", "weights", "prompt", "step", "cache", "decode", "peak", "fits",
        "fetched", "s/step",
    )  # fmt: skip
    table = Table(*headings)
    for plan in plans:
        sizes = (
            plan.parameters, plan.prefix, plan.activations, plan.cache_residuals, plan.vae,
            plan.total,
        )  # fmt: skip
        table.add_row(
            plan.mode,
            str(plan.num_ranks),
            "" if plan.scheme == "none" else plan.scheme,
            *(f"{size / 1e9:.2f}" for size in sizes),
            "[green]yes[/green]" if plan.fits(devices) else "no",
            f"{plan.bytes_fetched / 1e9:.1f}" if plan.bytes_fetched else "",
            f"{plan.step_s:.3f}",
        )
    return table


def _command(folder: Path, plan: RankPlan, devices: Devices, vae_dtype: str) -> str:
    cfg, _, tensor = plan.mode.partition("x") if "x" in plan.mode else (plan.mode, "", plan.mode)
    settings = ["HYIMAGE_WORKER__DEVICE=cuda", "HYIMAGE_WORKER__DTYPE=bfloat16"]
    if cfg.startswith("cfg"):
        settings.append(f"HYIMAGE_WORKER__CFG_RANKS={cfg[3:]}")
    if plan.mode.startswith("layers"):
        names = ", ".join(f'"cuda:{index}"' for index in range(plan.num_ranks))
        settings[0] = f"HYIMAGE_WORKER__LAYER_DEVICES='[{names}]'"
    if tensor.startswith("tensor"):
        settings.append(f"HYIMAGE_WORKER__TENSOR_RANKS={tensor[6:]}")
    if vae_dtype != "float32":
        settings.append(f"HYIMAGE_WORKER__VAE_DTYPE={vae_dtype}")
    if plan.bytes_fetched:
        settings.append(f"HYIMAGE_WORKER__MEMORY_GB={USABLE * devices.memory_bytes / 1e9:.1f}")
    if plan.scheme == "none":
        return f"{' '.join(settings)} hyimage serve --checkpoint {folder}"
    rounded = folder.with_name(f"{folder.name}-{plan.scheme}")
    return (
        f"hyimage quantize {folder} {rounded} --scheme {plan.scheme}\n"
        f"{' '.join(settings)} hyimage serve --checkpoint {rounded}"
    )
