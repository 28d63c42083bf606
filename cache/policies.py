"""Skip policies: TeaCache, noise level, fixed interval, first block (FBCache). All float32.

Each decides whether a step has changed little enough to be skipped. `should_skip` is called once
a step, `update` with the decision; a step is skipped only if all policies agree.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from cache.protocol import StepContext

# Turns the embedded rows of a step into what TeaCache compares.
Signal = Callable[[StepContext, Tensor], Tensor]

# Above it the layout is decided, and an error there grows with every later step.
# Source: `hyimage bench quality` on the tiny checkpoint, 2026-11-25: guided velocities change by 10
# to 50 % over a sixtieth of the steps above 0.93, by 5 % below 0.9.
RELAXED_BELOW = 0.9


def relative_l1(now: Tensor, before: Tensor) -> float:
    """Return TeaCache's relative L1 distance: the mean change over the mean value before it."""
    return float((now - before).abs().mean() / before.abs().mean().clamp_min(1e-12))


def evaluate_polynomial(coefficients: Sequence[float], x: float) -> float:
    """Return the polynomial's value; the highest power's coefficient comes first."""
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value


class EarlyPolicy(Protocol):
    """A policy that decides before any layer has run."""

    def should_skip(self, context: StepContext, x_BSD: Tensor, is_allowed: bool) -> bool:
        """Return whether a step may be reused; called for steps that are not allowed to be too."""
        ...

    def update(self, is_reused: bool) -> None:
        """Take note of the decision."""
        ...


class TeaCachePolicy:
    """TeaCache: the estimated change since the last computed step stays below a threshold.

    `polynomial` maps the signal's relative change to the output's, on [x_min, x_max].

    Source: Liu et al. 2024 (arXiv 2411.19108), equations 5 to 7.
    """

    def __init__(
        self,
        threshold: float,
        signal: Signal,
        polynomial: Sequence[float],
        x_range: tuple[float, float],
        relaxation: float = 1.0,
    ) -> None:
        """`relaxation` multiplies the threshold below RELAXED_BELOW; 1 is TeaCache as published."""
        self._threshold = threshold
        self._relaxation = relaxation
        self._signal = signal
        self._polynomial = polynomial
        self._x_range = x_range
        self._previous: Tensor | None = None
        self._accumulated = 0.0

    def should_skip(self, context: StepContext, x_BSD: Tensor, is_allowed: bool) -> bool:
        signal = self._signal(context, x_BSD).float()
        previous, self._previous = self._previous, signal
        if not is_allowed or previous is None:
            return False
        x_min, x_max = self._x_range
        change = min(max(relative_l1(signal, previous), x_min), x_max)
        self._accumulated += max(0.0, evaluate_polynomial(self._polynomial, change))
        relaxation = self._relaxation if context.sigma < RELAXED_BELOW else 1.0
        return self._threshold > 0 and self._accumulated < self._threshold * relaxation

    def update(self, is_reused: bool) -> None:
        if not is_reused:
            self._accumulated = 0.0


class NoiseLevelPolicy:
    """TeaCache by noise level alone: the mean change of the output between two levels, as measured.

    Replaces the polynomial where no signal predicts the output well enough.
    """

    def __init__(self, threshold: float, profile: Sequence[tuple[float, float]]) -> None:
        self._threshold = threshold
        self._profile = profile
        self._previous: float | None = None
        self._accumulated = 0.0

    def should_skip(self, context: StepContext, x_BSD: Tensor, is_allowed: bool) -> bool:
        passed = self._passed(context.sigma)
        previous, self._previous = self._previous, passed
        if not is_allowed or previous is None:
            return False
        self._accumulated += max(0.0, passed - previous)
        return self._threshold > 0 and self._accumulated < self._threshold

    def update(self, is_reused: bool) -> None:
        if not is_reused:
            self._accumulated = 0.0

    def _passed(self, sigma: float) -> float:
        """Return the change accumulated on the way down to sigma, linear between the points."""
        before = self._profile[0]
        for point in self._profile:
            if point[0] <= sigma:
                span = before[0] - point[0]
                share = (before[0] - sigma) / span if span > 0 else 0.0
                return before[1] + max(0.0, share) * (point[1] - before[1])
            before = point
        return before[1]


class FixedIntervalPolicy:
    """Every n-th step is computed, after the first few have been."""

    NUM_FIRST = 3

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._run = 0

    def should_skip(self, context: StepContext, x_BSD: Tensor, is_allowed: bool) -> bool:
        return is_allowed and context.step >= self.NUM_FIRST and self._run < self._interval - 1

    def update(self, is_reused: bool) -> None:
        self._run = self._run + 1 if is_reused else 0


class FirstBlockPolicy:
    """FBCache: the first layer's residual has hardly changed since the last computed step.

    The row of the image that changed most decides for all of its rows.

    Source: the first block cache of the ParaAttention project.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._kept_BSD: Tensor | None = None

    def should_skip(self, residual_BSD: Tensor) -> bool:
        kept_BSD = self._kept_BSD
        if kept_BSD is None:
            return False
        changes_B = (residual_BSD - kept_BSD).float().abs().mean(dim=(1, 2))
        sizes_B = kept_BSD.float().abs().mean(dim=(1, 2)).clamp_min(1e-12)
        return float(torch.max(changes_B / sizes_B)) < self._threshold

    def keep(self, residual_BSD: Tensor) -> None:
        """Remember the first layer's residual at a computed step."""
        self._kept_BSD = residual_BSD
