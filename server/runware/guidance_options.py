"""Schema of `hunyuan.guidance`, and the guidance plan that it comes to."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from pipeline.guidance_plan import EVERYWHERE, PLAIN_GUIDANCE, ApgPlan, GuidancePlan, Interval, Ramp
from server.runware.wire_values import cleaned

GuidancePreset = Literal["plain", "interval"]

# What the presets stand for.
_PRESETS: dict[object, dict[str, object]] = {"plain": {}, "interval": {"interval": "calibrated"}}
_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)
_NOISE_LEVEL = {"type": "number", "minimum": 0, "maximum": 1}
_INTERVAL_SCHEMA = {
    "anyOf": [
        {"type": "array", "items": _NOISE_LEVEL, "minItems": 2, "maxItems": 2},
        {"type": "string", "enum": ["calibrated"]},
    ]
}


def _interval(value: object) -> object:
    """Return two noise levels as a pair; refuse all else but `calibrated`."""
    if value == "calibrated":
        return value
    levels = list(value) if isinstance(value, list | tuple) else []
    if len(levels) == 2 and all(type(level) in (int, float) for level in levels):
        low, high = map(float, levels)
        if 0 <= low < high <= 1:
            return low, high
    raise ValueError(
        "It must be [low, high], two noise levels with 0 <= low < high <= 1, or 'calibrated'."
    )


class ApgOptions(BaseModel):
    """Adaptive projected guidance, which saturates less; the defaults are those published."""

    model_config = _STRICT
    momentum: float = Field(
        -0.5, ge=-1, le=1, description="Weight of the earlier steps' differences; 0 is none."
    )
    normThreshold: float | None = Field(
        None, gt=0, le=1000, description="Most root mean square of the difference; left out, none."
    )
    eta: float = Field(
        0.0, ge=0, le=1, description="Share kept of what is parallel to the prediction; 1 is all."
    )

    @model_validator(mode="before")
    @classmethod
    def _clean(cls, values: object) -> object:
        return cleaned(cls, values)


class GuidanceOptions(BaseModel):
    """Where and how an image is guided. Without any of it, `CFGScale` is applied at every step."""

    model_config = _STRICT
    interval: Annotated[
        tuple[float, float] | Literal["calibrated"] | None,
        BeforeValidator(_interval),
        WithJsonSchema(_INTERVAL_SCHEMA),
    ] = Field(
        None,
        description="[low, high]: noise levels, 1 pure noise and 0 the image, between which steps "
        "are guided; the others run one row instead of two. `calibrated`: the checkpoint's own.",
    )
    apg: ApgOptions | None = Field(None, description="Adaptive projected guidance.")
    rescale: float = Field(
        0.0, ge=0, le=1, description="Share scaled back to the conditional prediction's contrast."
    )
    ramp: Ramp = Field(
        "none", description="Raise the scale from 1 at the first step to `CFGScale` at the last."
    )

    @model_validator(mode="before")
    @classmethod
    def _clean(cls, values: object) -> object:
        if isinstance(values, str):
            if values not in _PRESETS:
                raise ValueError("It must be an object, or one of: 'plain', 'interval'.")
            return _PRESETS[values]
        return cleaned(cls, values)


def with_presets(schema: dict[str, Any]) -> None:
    """Add the names of the presets to the JSON schema of `hunyuan.guidance`."""
    schema["anyOf"].insert(1, {"type": "string", "enum": list(_PRESETS)})


def build_guidance_plan(options: GuidanceOptions | None, default: GuidancePreset) -> GuidancePlan:
    """Return the plan of a checked task; `default` is the server's, for tasks without options."""
    if options is None:
        return PLAIN_GUIDANCE if default == "plain" else GuidancePlan(interval="calibrated")
    apg = options.apg
    interval: Interval = EVERYWHERE if options.interval is None else options.interval
    return GuidancePlan(
        interval=interval,
        apg=ApgPlan()
        if apg is None
        else ApgPlan(momentum=apg.momentum, norm_threshold=apg.normThreshold, eta=apg.eta),
        rescale=options.rescale,
        ramp=options.ramp,
    )
