"""The diagnostics object of a result: how an image was generated, for clients that request it."""

from collections.abc import Sequence
from typing import Any

from pipeline.request import Diagnostics
from pipeline.vocabulary import Vocabulary
from server.runware.cache_options import build_cache_plan
from server.runware.schemas import BLANK_PROMPT, ImageInference
from server.settings import CacheSettings


def list_request_warnings(
    task: ImageInference, cache: CacheSettings, vocabulary: Vocabulary | None
) -> list[str]:
    """Return what of a task has no effect, or cannot come out as it says."""
    _, warnings = build_cache_plan(task, cache)
    unknown = None
    if vocabulary is not None and task.positivePrompt != BLANK_PROMPT:
        unknown = vocabulary.warning(task.positivePrompt)
    return [*warnings, *([unknown] if unknown else [])]


def diagnostics_object(diagnostics: Diagnostics, warnings: Sequence[str] = ()) -> dict[str, Any]:
    """Return the API's object; `warnings` about the request come before those of the pipeline."""
    text = {} if diagnostics.text is None else {"text": diagnostics.text}
    return {
        **text,
        "cache": diagnostics.cache,
        "stepsComputed": diagnostics.num_steps - len(diagnostics.reused_steps),
        "stepsReused": len(diagnostics.reused_steps),
        "reusedSteps": list(diagnostics.reused_steps),
        "window": list(diagnostics.window),
        "maxConsecutive": diagnostics.max_consecutive,
        "effectiveThreshold": {
            "teaCache": diagnostics.tea_threshold,
            "fbCache": diagnostics.fb_threshold,
        },
        "calibrated": diagnostics.is_calibrated,
        "modelEvaluations": diagnostics.num_evaluations,
        "rows": {"run": diagnostics.num_rows, "saved": diagnostics.num_saved_rows},
        "guidance": _guidance_object(diagnostics),
        "scheduler": {
            "requested": diagnostics.scheduler,
            "resolved": diagnostics.resolved_scheduler,
            "grid": diagnostics.sigma_schedule,
            "status": diagnostics.scheduler_status,
        },
        "warnings": [*warnings, *diagnostics.warnings],
    }


def _guidance_object(diagnostics: Diagnostics) -> dict[str, Any]:
    """Return how the rows of the image were combined, with the interval that was used."""
    plan = diagnostics.guidance
    return {
        "interval": list(plan.interval),
        "unguidedSteps": diagnostics.num_unguided_steps,
        "apg": None
        if plan.apg.is_neutral
        else {
            "momentum": plan.apg.momentum,
            "normThreshold": plan.apg.norm_threshold,
            "eta": plan.apg.eta,
        },
        "rescale": plan.rescale,
        "ramp": plan.ramp,
    }
