"""Step caches of a pipeline: a fresh cache for each image, and the signal of TeaCache."""

import torch
from torch import Tensor

from cache.build import build_step_cache
from cache.plan import CachePlan
from cache.policies import Signal
from cache.protocol import StepCache, StepContext
from model.transformer import HunyuanImage
from pipeline.load import Pipeline


def new_step_cache(pipeline: Pipeline, plan: CachePlan) -> StepCache:
    """Return a fresh step cache for one image; on a mesh all ranks take the same decisions."""
    transformer = pipeline.transformer
    signal = teacache_signal(transformer, plan)
    return build_step_cache(plan, pipeline.calibration, signal, transformer.mesh.all_true)


def teacache_signal(transformer: HunyuanImage, plan: CachePlan) -> Signal:
    """Return the signal that TeaCache compares between steps.

    `input`: the first layer's normed input at the image tokens, the same in all rows of an image.
    `schedule`: the embedded noise level alone.
    """
    if plan.tea_signal == "schedule":

        def schedule_signal(context: StepContext, x_BSD: Tensor) -> Tensor:
            timestep_B = torch.full((1,), context.sigma * 1000.0, device=x_BSD.device)
            embedded_BD: Tensor = transformer.time_embed(timestep_B)
            return embedded_BD

        return schedule_signal
    norm = transformer.layers[0].input_layernorm

    def input_signal(context: StepContext, x_BSD: Tensor) -> Tensor:
        normed_BSD: Tensor = norm(x_BSD[:1, 1:].to(norm.weight.device))
        return normed_BSD

    return input_signal
