"""Step cache plan of a request. Free of torch: the API process builds it, the worker uses it."""

from dataclasses import dataclass
from typing import Literal

# What TeaCache measures the input's change by: the image's tokens, or the noise level alone.
TeaSignal = Literal["input", "schedule"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ForecastPlan:
    """Forecast the residuals of reused steps by a polynomial of this order.

    With an interval n every n-th step is computed, whatever the image; without one TeaCache or
    FBCache decide. Order 0 repeats the last computed residual: with an interval that is the naive
    reuse that others are compared with. With a contraction the polynomials are Hermite's, scaled by
    it; without one they are Taylor's, damped by how much of earlier forecasts came true.
    """

    order: int
    interval: int | None = None
    contraction: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CachePlan:
    """Which policies may reuse steps [start, end), and their thresholds. None means off.

    `tea_distance` is the API's value; `tea_relaxation` multiplies what it allows at the lower noise
    levels, where a change reaches less of the image. `fb_threshold_scale` is how much of the
    calibrated FBCache threshold is used: 1 is the default.
    """

    start: int
    end: int
    max_consecutive: int = 3
    tea_distance: float | None = None
    tea_relaxation: float = 1.0
    tea_signal: TeaSignal = "input"
    fb_threshold_scale: float | None = None
    forecast: ForecastPlan | None = None

    @property
    def is_on(self) -> bool:
        policies = (self.tea_distance, self.fb_threshold_scale, self.forecast)
        return any(policy is not None for policy in policies)

    @property
    def name(self) -> str:
        """Return the name that diagnostics give it."""
        names = {
            "teaCache": self.tea_distance,
            "fbCache": self.fb_threshold_scale,
            "forecast": self.forecast,
        }
        return "+".join(name for name, value in names.items() if value is not None) or "none"


NO_REUSE = CachePlan(start=0, end=0)
