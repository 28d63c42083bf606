"""Step cache protocol: an evaluation takes hidden states and yields layer calls.

An evaluation is a generator. It yields the hidden states that are to go through the first layer
or through all others, is sent the layers' output, and returns the last layer's output, computed or
estimated. So images with different plans, at different steps, share a batch: the driver runs
equal calls as one batch, and no image's layers run because a neighbour's do.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class StepContext:
    """The step and the noise level of one evaluation.

    `evaluation` counts those of one step; solvers of second order have two.
    """

    step: int
    num_steps: int
    evaluation: int
    sigma: float

    @property
    def is_inner(self) -> bool:
        """Return whether it is neither the first nor the last step; those are always computed."""
        return 0 < self.step < self.num_steps - 1


@dataclass(frozen=True, slots=True)
class RunFirstBlock:
    """Run these hidden states through the first layer. Shapes: x_BSD."""

    x_BSD: Tensor


@dataclass(frozen=True, slots=True)
class RunRemainingBlocks:
    """Run these hidden states through all layers but the first. Shapes: x_BSD."""

    x_BSD: Tensor


LayerCall = RunFirstBlock | RunRemainingBlocks
Evaluation = Generator[LayerCall, Tensor, Tensor]


class StepCache(Protocol):
    """The step cache of one image; all its state belongs to that image."""

    def evaluate(self, context: StepContext, x_BSD: Tensor) -> Evaluation:
        """Yield layer calls and return the last layer's output for x_BSD.

        Shapes: x_BSD holds the image's rows, [conditional, unconditional] or the first alone:
        [<timestep>, image tokens] as embedded at this step's noise level.
        """
        ...
