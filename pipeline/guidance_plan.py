"""Guidance plan of a request: where an image is guided, and how. Free of torch."""

from dataclasses import dataclass
from typing import Literal

Ramp = Literal["none", "linear", "cosine"]
Interval = tuple[float, float] | Literal["calibrated"]

EVERYWHERE = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ApgPlan:
    """Adaptive projected guidance: what is added to the conditional prediction of the image.

    `momentum` weighs the sum of the earlier steps' differences, negative as published.
    `norm_threshold` bounds the root mean square of the difference, so that it serves any size;
    None sets no bound. `eta` is the share that is kept of the part parallel to the conditional
    prediction.
    """

    momentum: float = 0.0
    norm_threshold: float | None = None
    eta: float = 1.0

    @property
    def is_neutral(self) -> bool:
        """Return whether it changes nothing."""
        return self.momentum == 0 and self.norm_threshold is None and self.eta == 1


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidancePlan:
    """How the rows of an image are combined; the defaults are plain classifier-free guidance.

    Steps that begin at a noise level outside `interval` are not guided. `ramp` raises the scale
    from 1 at the noise level 1 to the request's at 0. `rescale` is the share of the result that is
    scaled back to the standard deviation of the conditional row.
    """

    interval: Interval = EVERYWHERE
    apg: ApgPlan = ApgPlan()
    rescale: float = 0.0
    ramp: Ramp = "none"

    @property
    def is_plain(self) -> bool:
        return self == PLAIN_GUIDANCE

    @property
    def name(self) -> str:
        """Return what it is made of, for statistics by mode."""
        parts = (
            "" if self.interval == EVERYWHERE else f"interval {self.interval}",
            "" if self.apg.is_neutral else "apg",
            f"rescale {self.rescale:g}" if self.rescale else "",
            "" if self.ramp == "none" else self.ramp,
        )
        return " ".join(filter(None, parts)) or "plain"


PLAIN_GUIDANCE = GuidancePlan()
