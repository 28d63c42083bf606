"""Step caches of a pipeline: a fresh one for each image, rows that come and go, the signal."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from cache.build import build_step_cache
from cache.plan import CachePlan
from cache.policies import Signal
from cache.protocol import Evaluation, StepCache, StepContext
from cache.residual_cache import ResidualCache
from model.transformer import HunyuanImage
from pipeline.load import Pipeline


class SwitchingCache:
    """A step cache for rows that come and go: a fresh one whenever their number changes.

    What is kept of two rows cannot stand in for one, nor the other way round, so the step at which
    the unconditional row appears or disappears is computed, and the caches begin anew.
    """

    def __init__(self, new_cache: Callable[[], StepCache]) -> None:
        self._new_cache = new_cache
        self._num_rows = 0
        self.caches: list[StepCache] = []

    def evaluate(self, context: StepContext, x_BSD: Tensor) -> Evaluation:
        """Return the layers' output, computed or estimated."""
        if len(x_BSD) != self._num_rows:
            self._num_rows = len(x_BSD)
            self.caches.append(self._new_cache())
        return (yield from self.caches[-1].evaluate(context, x_BSD))


def new_step_cache(pipeline: Pipeline, plan: CachePlan) -> StepCache:
    """Return a fresh step cache for one image; on a mesh all ranks take the same decisions."""
    transformer = pipeline.transformer
    signal = teacache_signal(transformer, plan)
    return SwitchingCache(
        partial(build_step_cache, plan, pipeline.calibration, signal, transformer.mesh.all_true)
    )


def list_reused_steps(step_cache: StepCache) -> tuple[int, ...]:
    """Return the steps at which a step cache stood in for the layers, in order."""
    caches = step_cache.caches if isinstance(step_cache, SwitchingCache) else [step_cache]
    return tuple(
        step for cache in caches if isinstance(cache, ResidualCache) for step in cache.reused_steps
    )


def count_computed(step_cache: StepCache, num_evaluations: int) -> int:
    """Return how many of an image's evaluations the layers computed."""
    caches = step_cache.caches if isinstance(step_cache, SwitchingCache) else [step_cache]
    counted = [cache for cache in caches if isinstance(cache, ResidualCache)]
    return sum(cache.num_computed_evaluations for cache in counted) if counted else num_evaluations


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
