"""What a generated image can tell about itself: the diagnostics object, and TeaCache's signals."""

from typing import Any, cast

import torch
from torch import Tensor

from cache.build import calibration_of, effective_thresholds
from cache.plan import CachePlan
from cache.policies import Signal
from cache.protocol import StepContext
from cache.residual_cache import ResidualCache
from model.transformer import DecoderLayer, HunyuanImage
from pipeline.denoise import ImageRun
from pipeline.load import Pipeline
from pipeline.prompt import PreparedPrompt
from schedulers.build import Scheduler
from server.engine.messages import Job

STOCHASTIC_WITH_CACHE = (
    "The scheduler adds fresh noise at every step, which a reused step does not see; "
    "quality falls faster than with a deterministic one."
)


def build_signal(transformer: HunyuanImage, plan: CachePlan) -> Signal:
    """Return what TeaCache compares between steps.

    `input`: the first layer's normed input at the image tokens, the same in all rows of an image.
    `schedule`: the embedded noise level alone.
    """
    if plan.tea_signal == "schedule":

        def schedule_signal(context: StepContext, x_BSD: Tensor) -> Tensor:
            timestep_B = torch.tensor([context.sigma * 1000.0], device=x_BSD.device)
            embedded_BD: Tensor = transformer.time_embed(timestep_B)
            return embedded_BD

        return schedule_signal
    norm = cast(DecoderLayer, transformer.model.layers[0]).input_layernorm

    def input_signal(context: StepContext, x_BSD: Tensor) -> Tensor:
        normed_BSD: Tensor = norm(x_BSD[:1, 1:])
        return normed_BSD

    return input_signal


def report_run(
    pipeline: Pipeline, job: Job, scheduler: Scheduler, run: ImageRun, written: PreparedPrompt
) -> dict[str, Any]:
    """Return the diagnostics object of a finished image."""
    plan, cache, path = job.cache, run.step_cache, run.trajectory
    reused = cache.reused_steps if isinstance(cache, ResidualCache) else []
    computed = (
        cache.num_computed_evaluations if isinstance(cache, ResidualCache) else path.num_evaluations
    )
    thresholds = effective_thresholds(plan, pipeline.calibration)
    warnings = [*job.warnings, *scheduler.warnings, *written.warnings]
    if plan.is_on and scheduler.is_stochastic:
        warnings.append(STOCHASTIC_WITH_CACHE)
    cot_text = written.prompt.cot_text
    return {
        **({} if cot_text is None else {"text": cot_text}),
        "cache": plan.name,
        "stepsComputed": path.num_steps - len(reused),
        "stepsReused": len(reused),
        "reusedSteps": list(reused),
        "window": [plan.start, plan.end],
        "maxConsecutive": plan.max_consecutive,
        "effectiveThreshold": {"teaCache": thresholds.tea, "fbCache": thresholds.fb},
        "calibrated": calibration_of(plan, pipeline.calibration).is_calibrated,
        "modelEvaluations": computed,
        "scheduler": {
            "requested": scheduler.requested,
            "resolved": scheduler.resolved,
            "grid": scheduler.grid,
            "status": scheduler.status,
        },
        "warnings": warnings,
    }
