"""Phases of the transformer's training: mixture of batches and learning rate at each step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of steps with one mixture; the learning rate goes from one factor to another."""

    num_steps: int
    small_share: float
    wordy_share: float
    square_share: float = 0.4
    rate_from: float = 1.0
    rate_to: float = 1.0


# Small images first: sprites are learnt four times as fast there. Then all offered sizes, at
# falling rates: at the full rate the loss there stood still from step 700 on, at half of it fell.
PHASES = (
    Phase(450, small_share=1.0, wordy_share=0.0),
    Phase(450, small_share=0.3, wordy_share=0.05, square_share=0.5, rate_to=0.5),
    Phase(4200, small_share=0.0, wordy_share=0.12, rate_from=0.5, rate_to=0.3),
    Phase(2200, small_share=0.0, wordy_share=0.12, rate_from=0.3, rate_to=0.02),
)


def rate_and_phase(step: int, phases: Sequence[Phase]) -> tuple[float, Phase]:
    """Return the factor on the learning rates at a step, and its phase; the last one never ends."""
    start = 0
    for phase in phases:
        if step < start + phase.num_steps:
            share = (step - start) / phase.num_steps
            rate = phase.rate_from + (phase.rate_to - phase.rate_from) * share
            return rate * min(1.0, (step + 1) / 25), phase
        start += phase.num_steps
    return phases[-1].rate_to, phases[-1]


def cool_down(step: int, num_steps: int) -> tuple[Phase, ...]:
    """Return phases that end a run at `step` with a falling learning rate."""
    rate, mixture = rate_and_phase(step, PHASES)
    return (
        replace(mixture, num_steps=step),
        replace(mixture, num_steps=num_steps, rate_from=rate, rate_to=0.03),
    )
