"""Guidance of one image: at which steps it has an unconditional row, and how its rows combine.

Classifier-free guidance, and what has been published to mend it: an interval of noise levels, a
ramp of the scale, projected guidance and rescaling. All of it is exact at its neutral settings.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from cache.calibration import Calibration
from pipeline.guidance_plan import EVERYWHERE, ApgPlan, GuidancePlan, Ramp

UNCALIBRATED_INTERVAL = (
    "This checkpoint has no calibrated interval of the guidance, so every step was guided; "
    "`hyimage calibrate` measures one, or send 'hunyuan.guidance': {'interval': [low, high]}."
)
NO_SECOND_ROW = (
    "'hunyuan.guidance' has no effect: this image is generated from its conditional row alone."
)


def resolve_guidance(
    plan: GuidancePlan, calibration: Calibration, num_rows: int
) -> tuple[GuidancePlan, tuple[str, ...]]:
    """Return a plan with the checkpoint's interval in the place of `calibrated`, and warnings."""
    warnings = () if plan.is_plain or num_rows > 1 else (NO_SECOND_ROW,)
    if plan.interval != "calibrated":
        return plan, warnings
    fitted = calibration.guidance
    if fitted is None:
        return replace(plan, interval=EVERYWHERE), warnings or (UNCALIBRATED_INTERVAL,)
    return replace(plan, interval=(fitted.low, fitted.high)), warnings


def scale_at(scale: float, plan: GuidancePlan, sigma: float) -> float:
    """Return the guidance scale of a step that begins at a noise level; 1 needs no second row.

    Sources: the interval, Kynkaanniemi et al. 2024 (arXiv 2404.07724), equation 5, there over the
    noise levels of EDM; the ramps, Wang et al. 2024 (arXiv 2404.13040), not scaled to one mean.
    """
    assert plan.interval != "calibrated", "resolve_guidance comes first"
    low, high = plan.interval
    if not low <= sigma <= high:
        return 1.0
    return 1.0 + (scale - 1.0) * _rise(plan.ramp, sigma) if plan.ramp != "none" else scale


class Guidance:
    """The guidance of one image; all its state belongs to that image.

    `num_rows` counts the rows that went through the layers.
    """

    def __init__(
        self, scale: float, plan: GuidancePlan, sigmas: Sequence[float], has_pair: bool
    ) -> None:
        """`has_pair`: there is an unconditional row. `sigmas` are those of the steps' bounds."""
        self.scale, self.plan, self.has_pair = scale, plan, has_pair
        self._scales = [scale_at(scale, plan, sigma) if has_pair else 1.0 for sigma in sigmas[:-1]]
        self._apg = None if plan.apg.is_neutral else ProjectedDifference(plan.apg)
        self.num_rows = 0

    @property
    def num_unguided_steps(self) -> int:
        """Return at how many steps the conditional row is alone although there is another."""
        return sum(scale == 1.0 for scale in self._scales) if self.has_pair else 0

    def has_unconditional(self, step: int) -> bool:
        """Return whether a step runs the unconditional row."""
        return self._scales[step] != 1.0

    def count_rows(self, step: int) -> int:
        """Return how many rows a step runs."""
        return 2 if self.has_unconditional(step) else 1

    def combine(self, step: int, sigma: float, latent_BCYX: Tensor, rows_BCYX: Tensor) -> Tensor:
        """Return the guided velocity, float32, of an evaluation's rows; a lone one as it is.

        Shapes: latent_BCYX of the image, rows_BCYX its velocities -> velocity_BCYX.
        Source: Ho and Salimans 2022 (arXiv 2207.12598).
        """
        if len(rows_BCYX) == 1:
            return rows_BCYX.float()
        conditional_BCYX, unconditional_BCYX = rows_BCYX.float().chunk(2)
        scale = self._scales[step]
        if self._apg is None:
            guided_BCYX = unconditional_BCYX + scale * (conditional_BCYX - unconditional_BCYX)
        else:
            # In predictions of the image, x - sigma * velocity, as the paper has it.
            difference_BCYX = self._apg.update(
                latent_BCYX.float() - sigma * conditional_BCYX,
                sigma * (unconditional_BCYX - conditional_BCYX),
            )
            guided_BCYX = conditional_BCYX - (scale - 1.0) / sigma * difference_BCYX
        return rescaled(guided_BCYX, conditional_BCYX, self.plan.rescale)


class ProjectedDifference:
    """Adaptive projected guidance: the difference of the rows' images, with its running sum.

    The norm is the root mean square instead of the Euclidean norm, so that one bound serves every
    size of image.

    Source: Sadat et al. 2024 (arXiv 2410.02416), algorithm 1.
    """

    def __init__(self, plan: ApgPlan) -> None:
        self._plan = plan
        self._sum_BCYX: Tensor | None = None

    def update(self, image_BCYX: Tensor, difference_BCYX: Tensor) -> Tensor:
        """Take note of a difference and return what is to be added, times the scale less one.

        Shapes: image_BCYX predicted by the conditional row, difference_BCYX -> difference_BCYX.
        """
        plan = self._plan
        if self._sum_BCYX is not None and plan.momentum:
            difference_BCYX = difference_BCYX + plan.momentum * self._sum_BCYX
        self._sum_BCYX = difference_BCYX
        if plan.norm_threshold is not None:
            size = difference_BCYX.square().mean().sqrt().clamp_min(1e-12)
            shorter: Tensor = (plan.norm_threshold / size).clamp_max(1.0)
            difference_BCYX = difference_BCYX * shorter
        direction_BCYX: Tensor = image_BCYX / image_BCYX.norm().clamp_min(1e-12)
        parallel_BCYX: Tensor = (difference_BCYX * direction_BCYX).sum() * direction_BCYX
        return difference_BCYX - (1.0 - plan.eta) * parallel_BCYX


def rescaled(guided_BCYX: Tensor, conditional_BCYX: Tensor, share: float) -> Tensor:
    """Return a velocity, a share of it with the standard deviation of the conditional one.

    Source: Lin et al. 2023 (arXiv 2305.08891), equations 15 and 16.
    """
    if not share:
        return guided_BCYX
    ratio = conditional_BCYX.std() / guided_BCYX.std().clamp_min(1e-12)
    rescaled_BCYX: Tensor = guided_BCYX * (1.0 - share + share * ratio)
    return rescaled_BCYX


def _rise(ramp: Ramp, sigma: float) -> float:
    """Return how far a ramp has risen at a noise level: 0 at 1, 1 at 0."""
    return 1.0 - sigma if ramp == "linear" else (1.0 + math.cos(math.pi * sigma)) / 2
