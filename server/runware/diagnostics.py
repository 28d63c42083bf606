"""The diagnostics object of a result: how an image was generated, for clients that request it."""

from collections.abc import Sequence
from typing import Any

from pipeline.request import Diagnostics


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
        "scheduler": {
            "requested": diagnostics.scheduler,
            "resolved": diagnostics.resolved_scheduler,
            "grid": diagnostics.sigma_schedule,
            "status": diagnostics.scheduler_status,
        },
        "warnings": [*warnings, *diagnostics.warnings],
    }
