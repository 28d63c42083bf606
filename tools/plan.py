"""Plans of every mode on given devices, their figures, and the settings that start the fastest."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from model.config import ModelConfig
from model.loading.options import IMAGE_INPUT_PARTS, LoadOptions
from model.planning.devices import Devices
from model.planning.memory_plan import (
    USABLE,
    RankPlan,
    fit_rank,
    list_shapes,
    plan_layers,
    plan_rank,
)
from model.planning.meta_step import Workload
from model.quantization.scheme import SCHEMES
from pipeline.settings import PipelineSettings
from tools.modes import parse_mode

OFFLOAD = "offload"  # the mode of one device that holds some experts elsewhere
# From the most exact weights to the least.
_BY_EXACTNESS = ("none", "int8", "fp8", "int4")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanRequest:
    """What is to fit: a model on devices, generating several images at once.

    `quantization` is a scheme, none, or auto: quantized only where nothing else fits. With
    `expert_parallel` tensor ranks hold whole experts instead of a slice of each. With
    `num_input_images` what reads them is held too, and a prompt has that many of the largest size.
    """

    config: ModelConfig
    devices: Devices
    num_images: int = 1
    prompt_tokens: int = 1024
    quantization: str = "auto"
    vae_dtype: str = "bfloat16"
    expert_parallel: bool = False
    num_input_images: int = 0

    @property
    def options(self) -> LoadOptions:
        return LoadOptions(
            dtype=torch.bfloat16,
            vae_dtype=getattr(torch, self.vae_dtype),
            skip=() if self.num_input_images else IMAGE_INPUT_PARTS,
        )

    @property
    def workload(self) -> Workload:
        return Workload(
            images=self.num_images,
            prompt_tokens=self.prompt_tokens,
            input_images=self.num_input_images,
            is_guided=not self.config.is_guidance_distilled,
        )


def list_plans(request: PlanRequest) -> Iterator[RankPlan]:
    """Yield the plan of every mode; one device may also offload experts.

    Raises:
        ConfigError: the model cannot be planned.
    """
    fits = False
    choice = request.quantization
    for name in ("none", *SCHEMES) if choice == "auto" else (choice,):
        if fits:
            return
        plans = _plan_scheme(request, name)
        fits = any(plan.fits(request.devices) for plan in plans)
        yield from plans
        if not fits:
            scheme = SCHEMES.get(name)
            offloading = fit_rank(
                request.config, request.devices, request.options, request.workload, scheme
            )
            if offloading is not None:
                yield replace(offloading, mode=OFFLOAD)


def _plan_scheme(request: PlanRequest, name: str) -> list[RankPlan]:
    """Return the plans of all meshes, and of layers spread over the devices."""
    config, devices, scheme = request.config, request.devices, SCHEMES.get(name)
    options, workload = request.options, request.workload
    shapes = list_shapes(config, devices.count, request.expert_parallel)
    plans = [plan_rank(config, shape, devices, options, workload, scheme) for shape in shapes]
    if devices.count > 1:
        plans.append(plan_layers(config, devices, options, workload, scheme))
    return plans


def fastest_fitting(plans: Iterable[RankPlan], devices: Devices) -> RankPlan | None:
    """Return the most exact of the plans that fit and are fastest, within a tenth.

    Counted seconds are not exact enough to prefer one of them.
    """
    fitting = [plan for plan in plans if plan.fits(devices)]
    limit_s = 1.1 * min((plan.step_s for plan in fitting), default=0.0)
    return min(
        (plan for plan in fitting if plan.step_s <= limit_s),
        key=lambda plan: (_BY_EXACTNESS.index(plan.scheme), plan.step_s),
        default=None,
    )


def figures_of(plans: Iterable[RankPlan], devices: Devices) -> dict[str, Any]:
    """Return everything that is counted, for a JSON file."""
    return {
        "card": asdict(devices.card),
        "is_measured": False,
        "plans": [
            {**asdict(plan), "peak_bytes": plan.total, "fits": plan.fits(devices)} for plan in plans
        ],
    }


def settings_of(plan: RankPlan, request: PlanRequest, checkpoint: str) -> PipelineSettings:
    """Return the settings that run a plan with a checkpoint, which is quantized if the plan is."""
    values: dict[str, Any] = {
        "checkpoint": checkpoint, "dtype": "bfloat16", "vae_dtype": request.vae_dtype,
        "device": "cuda",
    }  # fmt: skip
    if request.num_input_images:
        values["image_inputs"] = True
    if plan.mode == OFFLOAD:
        limit = USABLE * request.devices.memory_bytes / 1e9
        return PipelineSettings.model_validate({**values, "device_memory_gb": round(limit, 1)})
    values |= parse_mode(plan.mode)
    if "layer_devices" in values:
        names = tuple(f"cuda:{index}" for index in range(plan.num_ranks))
        values |= {"layer_devices": names, "device": names[0]}
    return PipelineSettings.model_validate(values)


def environment_of(settings: PipelineSettings) -> dict[str, str]:
    """Return the variables that set what differs from the defaults, without the checkpoint."""
    values = settings.model_dump(exclude_defaults=True, exclude={"checkpoint"})
    return {
        f"HYIMAGE_WORKER__{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
    }
