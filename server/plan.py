"""`hyimage plan`: which modes fit on given devices, at what speed, and how to start them."""

import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from model.config import load_config
from model.loading.build import LoadOptions
from model.loading.plan import (
    USABLE,
    Devices,
    RankPlan,
    Workload,
    list_modes,
    parse_devices,
    plan_rank,
)

WIDTH = 110  # of the table where no terminal tells


def is_terminal() -> bool:
    """Return whether the table goes to a person's screen."""
    return sys.stdout.isatty()


def print_plan(folder: Path, gpus: str, images: int, prompt_tokens: int) -> bool:
    """Print a row per mode and the command of the fastest that fits; return whether one does.

    Raises:
        ConfigError: the folder's config.json, or the devices, are not usable.
    """
    config, devices = load_config(folder), parse_devices(gpus)
    options = LoadOptions(dtype=torch.bfloat16, vae_dtype=torch.float32)
    workload = Workload(
        images=images, prompt_tokens=prompt_tokens, is_guided=not config.is_guidance_distilled
    )
    modes = list_modes(config, devices.count)
    plans = [plan_rank(config, cfg, t, devices, options, workload) for cfg, t in modes]
    console = Console(highlight=False, soft_wrap=True, width=None if is_terminal() else WIDTH)
    console.print(_table(plans, devices))
    console.print(
        f"Memory of the fullest rank in GB: bfloat16, a float32 VAE, the largest offered size, "
        f"{images} picture(s) at once, prompts of {prompt_tokens} tokens.\n"
        f"A mode fits below {USABLE:.0%} of a device. Times are a roofline of an H100's data sheet "
        f"at {devices.efficiency:.0%} of its peak, not measured."
    )
    fitting = [plan for plan in plans if plan.fits(devices)]
    if not fitting:
        console.print(
            "[red]No mode fits.[/red] More devices, or larger ones; quantization and offload are "
            "not there yet."
        )
        return False
    console.print(f"\n{_command(folder, min(fitting, key=lambda plan: plan.step_s))}")
    return True


def _table(plans: list[RankPlan], devices: Devices) -> Table:
    headings = (
        "mode", "ranks", "weights", "prompt", "step", "cache", "decode", "peak", "fits", "s/step",
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
            *(f"{size / 1e9:.2f}" for size in sizes),
            "[green]yes[/green]" if plan.fits(devices) else "no",
            f"{plan.step_s:.3f}",
        )
    return table


def _command(folder: Path, plan: RankPlan) -> str:
    cfg, _, tensor = plan.mode.partition("x") if "x" in plan.mode else (plan.mode, "", plan.mode)
    settings = ["HYIMAGE_WORKER__DEVICE=cuda", "HYIMAGE_WORKER__DTYPE=bfloat16"]
    if cfg.startswith("cfg"):
        settings.append(f"HYIMAGE_WORKER__CFG_RANKS={cfg[3:]}")
    if tensor.startswith("tensor"):
        settings.append(f"HYIMAGE_WORKER__TENSOR_RANKS={tensor[6:]}")
    return f"{' '.join(settings)} hyimage serve --checkpoint {folder}"
