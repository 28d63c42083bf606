"""What a solver is: a pure step over an explicit sigma grid."""

from typing import Protocol

from torch import Tensor


class Solver(Protocol):
    """Moves a latent along a sigma grid.

    The model predicts the velocity `noise - picture` at
    `x = (1 - sigma) * picture + sigma * noise`. A solver holds no cursor, so jobs may share it.
    """

    @property
    def sigmas(self) -> Tensor:
        """Return the grid, float32 [num_steps + 1], from 1 to 0."""
        ...

    def step(self, latent_BCYX: Tensor, velocity_BCYX: Tensor, step: int) -> Tensor:
        """Return the float32 latent at sigmas[step + 1] for the one at sigmas[step]."""
        ...
