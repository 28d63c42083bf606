"""Diagnostics of a finished image: scheduler, step cache, evaluations, warnings."""

from cache.build import calibration_of, effective_thresholds
from pipeline.denoise import ImageRun
from pipeline.guidance import resolve_guidance
from pipeline.load import Pipeline
from pipeline.prompt import PreparedPrompt
from pipeline.request import Diagnostics, ImageRequest
from pipeline.step_cache import count_computed, list_reused_steps
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
    plan, trajectory, guidance = request.cache, run.trajectory, run.guidance
    num_evaluations = count_computed(run.step_cache, trajectory.num_evaluations)
    most_rows = trajectory.num_evaluations * (2 if guidance.has_pair else 1)
    _, guidance_warnings = resolve_guidance(
        request.guidance_plan, pipeline.calibration, 2 if guidance.has_pair else 1
    )
    thresholds = effective_thresholds(plan, pipeline.calibration)
    warnings = [*scheduler.warnings, *guidance_warnings, *prompt.warnings]
    if plan.is_on and scheduler.is_stochastic:
        warnings.append(STOCHASTIC_WITH_CACHE)
    return Diagnostics(
        cache=plan.name,
        num_steps=trajectory.num_steps,
        reused_steps=list_reused_steps(run.step_cache),
        window=(plan.start, plan.end),
        max_consecutive=plan.max_consecutive,
        tea_threshold=thresholds.tea,
        fb_threshold=thresholds.fb,
        is_calibrated=calibration_of(plan, pipeline.calibration).is_calibrated,
        num_evaluations=num_evaluations,
        num_reused_evaluations=trajectory.num_evaluations - num_evaluations,
        num_rows=guidance.num_rows,
        num_saved_rows=most_rows - guidance.num_rows,
        guidance=guidance.plan,
        num_unguided_steps=guidance.num_unguided_steps,
        scheduler=scheduler.requested,
        resolved_scheduler=scheduler.resolved,
        sigma_schedule=scheduler.sigma_schedule,
        scheduler_status=scheduler.status,
        text=prompt.prompt.cot_text,
        warnings=tuple(warnings),
    )
