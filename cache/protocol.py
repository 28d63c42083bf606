"""What a step cache is: it gets hidden states and asks for layers to be run, never the model.

An evaluation is a generator. It yields the hidden states that are to go through the first layer
or through all others, is sent what came out, and returns the last layer's output, computed or
estimated. So images with different plans, at different steps, share a batch: whoever drives them
runs together what they ask for together, and nothing is computed because a neighbour computes.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class StepContext:
    """Where in the drawing an evaluation stands.

    `stage` counts the evaluations of one step; solvers of second order have two.
    """

    step: int
    num_steps: int
    stage: int
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
    """Serves one image; all its state is that image's own."""

    def evaluate(self, context: StepContext, x_BSD: Tensor) -> Evaluation:
        """Yield layer calls and return the last layer's output for x_BSD.

        Shapes: x_BSD holds the image's rows, [conditional, unconditional] or the first alone:
        [<timestep>, image tokens] as embedded at this step's noise level.
        """
        ...
