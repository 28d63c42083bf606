"""Solver protocol: a pure step over explicit sigmas, which yields the points to evaluate.

The model predicts the velocity `noise - image` at `x = (1 - sigma) * image + sigma * noise`.
A step is a generator: it yields the points at which it wants the velocity, is sent each velocity,
and returns the latent at the next sigma. So one loop drives solvers with one evaluation a step and
with two, and several images can share each evaluation. A solver holds no state of an image: its
history is a list of nodes that belongs to the image.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

SampleNoise = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Point:
    """Where a velocity is wanted. Shapes: latent_BCYX float32."""

    latent_BCYX: Tensor
    sigma: float


@dataclass(frozen=True, slots=True)
class Node:
    """The latent and the predicted velocity of a finished step. Shapes: all _BCYX, float32."""

    sigma: float
    latent_BCYX: Tensor
    velocity_BCYX: Tensor

    @property
    def x0(self) -> Tensor:
        """Return the estimate of the image without noise. Shapes: -> x0_BCYX."""
        return self.latent_BCYX - self.sigma * self.velocity_BCYX


StepGenerator = Generator[Point, Tensor, Tensor]


class Solver(Protocol):
    """Moves a latent along its sigmas."""

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Return num_steps + 1 noise levels, from 1 to 0."""
        ...

    def step(
        self, latent_BCYX: Tensor, step: int, history: list[Node], sample_noise: SampleNoise
    ) -> StepGenerator:
        """Yield points, be sent velocities, and return the float32 latent at sigmas[step + 1].

        `history` holds the nodes of earlier steps, newest last; the step appends its own.
        `sample_noise` returns standard normal noise of the latent's shape; a stochastic solver
        calls it once a step.
        """
        ...
