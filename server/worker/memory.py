"""The memory budget: which jobs may be active together, so that no mix runs out of memory.

What an image needs is counted once, at the largest size and with as many input images as a request
may have, on the meta device (`model.planning`); less is taken in proportion to its tokens. An
estimate on the safe side, not a measurement: an out-of-memory error is handled all the same.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from model.loading.options import IMAGE_INPUT_PARTS
from model.planning.memory_plan import USABLE
from model.planning.meta_step import (
    MeshShape,
    Workload,
    build_meta_mesh,
    build_meta_model,
)
from model.planning.step_memory import StepMemory, measure_step_memory
from pipeline.input_image import MAX_IMAGES
from pipeline.load import Pipeline, build_options
from pipeline.request import ImageRequest
from pipeline.settings import PipelineSettings

PROMPT_TOKENS = 1024  # of a prompt and its system prompt, beyond a rewritten text


@dataclass(frozen=True, slots=True)
class JobNeeds:
    """Bytes that a job holds between its steps, and those that one of its steps takes besides."""

    held: int
    step: int


class MemoryBudget:
    """Whether another job fits beside the active ones."""

    def __init__(self, available: int, needs: Callable[[ImageRequest], JobNeeds]) -> None:
        """`available` counts bytes beside the weights."""
        self.available = available
        self.needs = needs

    def fits(self, active: Sequence[ImageRequest], request: ImageRequest) -> bool:
        """Return whether a job may start now; alone, every job may try."""
        if not active:
            return True
        needs = [self.needs(each) for each in (*active, request)]
        return sum(n.held for n in needs) + max(n.step for n in needs) <= self.available


def budget_of(pipeline: Pipeline, settings: PipelineSettings) -> MemoryBudget:
    """Return the budget of a loaded pipeline."""
    return MemoryBudget(free_bytes(pipeline), count_needs(pipeline, settings))


def count_needs(
    pipeline: Pipeline, settings: PipelineSettings
) -> Callable[[ImageRequest], JobNeeds]:
    """Return the function that gives the needs of a request."""
    config = pipeline.transformer.config
    largest = max(pipeline.offered_sizes, key=lambda size: size.width_px * size.height_px)
    largest_px = largest.width_px * largest.height_px
    stride = config.pixels_per_token
    memory = _measure(
        pipeline,
        settings,
        Workload(
            prompt_tokens=PROMPT_TOKENS,
            is_guided=not config.is_guidance_distilled,
            grid=(largest.height_px // stride, largest.width_px // stride),
            input_images=MAX_IMAGES if settings.image_inputs else 0,
        ),
    )

    def needs(request: ImageRequest) -> JobNeeds:
        images = min(pipeline.batch_size, len(request.seeds))
        pixels = (request.width_px or 0) * (request.height_px or 0) or largest_px
        share = pixels / largest_px
        text_tokens = PROMPT_TOKENS
        if request.rewrite != "off":
            text_tokens += pipeline.max_rewrite_tokens
        read = len(request.images) / MAX_IMAGES
        prefix = memory.prompts * text_tokens / PROMPT_TOKENS + memory.input_images * read
        residuals = 2 * memory.hidden * share if request.cache.is_on else 0.0
        step = images * max(memory.activations, memory.vae) * share
        if request.images:
            step = max(step, memory.encode, memory.prefill * read)
        return JobNeeds(held=math.ceil(images * (prefix + residuals)), step=math.ceil(step))

    return needs


def free_bytes(pipeline: Pipeline) -> int:
    """Return the bytes that jobs may take: the least of any device, less a reserve."""
    devices = [d for d in pipeline.transformer.devices if d.type == "cuda"]
    if not devices:
        return int(USABLE * _available_host_bytes())
    free = []
    for device in devices:
        unused, total = torch.cuda.mem_get_info(device)
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free.append(unused + idle - (1 - USABLE) * total)
    return max(0, int(min(free)))


def _measure(pipeline: Pipeline, settings: PipelineSettings, workload: Workload) -> StepMemory:
    options = build_options(settings, () if settings.image_inputs else IMAGE_INPUT_PARTS)
    mesh = build_meta_mesh(
        MeshShape(
            settings.cfg_parallel_size, settings.tensor_parallel_size, settings.expert_parallel
        )
    )
    model = build_meta_model(pipeline.transformer.config, mesh, options, None)
    return measure_step_memory(model, workload, options.dtype)


def _available_host_bytes() -> int:
    """Return MemAvailable of Linux; elsewhere there is no limit to keep to."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 1 << 60
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024
