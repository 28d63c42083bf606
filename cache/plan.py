"""What a task asks of the step caches. Free of torch: the server makes it, the worker obeys it."""

from dataclasses import dataclass
from typing import Literal

# How the change of the input is told: from the image's tokens, or from the noise level alone.
TeaSignal = Literal["input", "schedule"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ForecastPlan:
    """Forecast the reused steps by a polynomial of this order.

    With an interval every so many-th step is computed, whatever the image does there; without
    one TeaCache or FBCache decide. Order 0 holds the last computed step: with an interval that is
    the naive reuse that others are compared with.
    """

    order: int
    interval: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CachePlan:
    """Which policies may reuse steps [start, end), and how readily. None means off.

    `tea_distance` is the API's value. `fb_threshold_scale` is how much of the calibrated FBCache
    threshold is used: 1 is the default.
    """

    start: int
    end: int
    max_consecutive: int = 3
    tea_distance: float | None = None
    tea_signal: TeaSignal = "input"
    fb_threshold_scale: float | None = None
    forecast: ForecastPlan | None = None

    @property
    def is_on(self) -> bool:
        policies = (self.tea_distance, self.fb_threshold_scale, self.forecast)
        return any(policy is not None for policy in policies)

    @property
    def name(self) -> str:
        """Return what diagnostics call it."""
        names = {
            "teaCache": self.tea_distance,
            "fbCache": self.fb_threshold_scale,
            "forecast": self.forecast,
        }
        return "+".join(name for name, value in names.items() if value is not None) or "none"


NO_REUSE = CachePlan(start=0, end=0)
