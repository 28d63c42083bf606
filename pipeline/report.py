"""Diagnostics of a finished image: scheduler, step cache, evaluations, warnings."""

from cache.build import calibration_of, effective_thresholds
from cache.residual_cache import ResidualCache
from pipeline.denoise import ImageRun
from pipeline.load import Pipeline
from pipeline.prompt import PreparedPrompt
from pipeline.request import Diagnostics, ImageRequest
from schedulers.build import Scheduler

STOCHASTIC_WITH_CACHE = (
    "The scheduler adds fresh noise at every step, which a reused step does not see; "
    "quality falls faster than with a deterministic one."
)


def report_run(
    pipeline: Pipeline,
    request: ImageRequest,
    scheduler: Scheduler,
    run: ImageRun,
    prompt: PreparedPrompt,
) -> Diagnostics:
    """Return how a finished image was generated."""
    plan, step_cache, trajectory = request.cache, run.step_cache, run.trajectory
    reused_steps: tuple[int, ...] = ()
    num_evaluations = trajectory.num_evaluations
    if isinstance(step_cache, ResidualCache):
        reused_steps = tuple(step_cache.reused_steps)
        num_evaluations = step_cache.num_computed_evaluations
    thresholds = effective_thresholds(plan, pipeline.calibration)
    warnings = [*scheduler.warnings, *prompt.warnings]
    if plan.is_on and scheduler.is_stochastic:
        warnings.append(STOCHASTIC_WITH_CACHE)
    return Diagnostics(
        cache=plan.name,
        num_steps=trajectory.num_steps,
        reused_steps=reused_steps,
        window=(plan.start, plan.end),
        max_consecutive=plan.max_consecutive,
        tea_threshold=thresholds.tea,
        fb_threshold=thresholds.fb,
        is_calibrated=calibration_of(plan, pipeline.calibration).is_calibrated,
        num_evaluations=num_evaluations,
        num_reused_evaluations=trajectory.num_evaluations - num_evaluations,
        scheduler=scheduler.requested,
        resolved_scheduler=scheduler.resolved,
        sigma_schedule=scheduler.sigma_schedule,
        scheduler_status=scheduler.status,
        text=prompt.prompt.cot_text,
        warnings=tuple(warnings),
    )
