"""Whether a step has changed little enough to be reused: one policy each, all float32.

A policy is asked once a step and told what was decided; a step is reused only if all agree.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from cache.protocol import StepContext

# Turns the embedded rows of a step into what TeaCache compares.
Signal = Callable[[StepContext, Tensor], Tensor]


def relative_l1(now: Tensor, before: Tensor) -> float:
    """Return the mean absolute change over the mean absolute value before it."""
    return float((now - before).abs().mean() / before.abs().mean().clamp_min(1e-12))


def evaluate_polynomial(coefficients: Sequence[float], x: float) -> float:
    """Return the polynomial's value; the highest power's coefficient comes first."""
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value


class EarlyPolicy(Protocol):
    """A policy that needs no layer."""

    def should_skip(self, context: StepContext, x_BSD: Tensor, is_allowed: bool) -> bool:
        """Look at a step, reusable or not, and return whether it may be reused."""
        ...

    def update(self, is_reused: bool) -> None:
        """Hear what was decided."""
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
    ) -> None:
        self._threshold = threshold
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
        return self._threshold > 0 and self._accumulated < self._threshold

    def update(self, is_reused: bool) -> None:
        if not is_reused:
            self._accumulated = 0.0


class NoiseLevelPolicy:
    """TeaCache by noise level alone: the mean change of the output between two levels, as measured.

    What stands in for the polynomial when no signal foretells the output well enough.
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
        """Return the change accumulated on the way down to sigma, straight between the points."""
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
    """FBCache: what the first layer adds has hardly changed since the last computed step.

    Rows of one image decide together, by the one that changed most.

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
        """Remember the first layer's addition at a computed step."""
        self._kept_BSD = residual_BSD
