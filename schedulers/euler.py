"""Euler's method: the reference's own solver."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Euler:
    """First order, one model evaluation a step."""

    sigmas: Tensor

    def step(self, latent_BCYX: Tensor, velocity_BCYX: Tensor, step: int) -> Tensor:
        """Return the float32 latent at sigmas[step + 1] for the one at sigmas[step]."""
        d_sigma = self.sigmas[step + 1] - self.sigmas[step]
        return latent_BCYX.float() + d_sigma * velocity_BCYX.float()
