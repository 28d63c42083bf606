"""Euler and ancestral Euler: one evaluation a step."""

import math
from dataclasses import dataclass

from torch import Tensor

from schedulers.protocol import Node, Point, SampleNoise, StepGenerator


@dataclass(frozen=True, slots=True)
class Euler:
    """First order: the reference's own solver."""

    sigmas: tuple[float, ...]

    def step(
        self, latent_BCYX: Tensor, step: int, history: list[Node], sample_noise: SampleNoise
    ) -> StepGenerator:
        sigma, next_sigma = self.sigmas[step], self.sigmas[step + 1]
        velocity_BCYX = yield Point(latent_BCYX, sigma)
        return latent_BCYX + (next_sigma - sigma) * velocity_BCYX


@dataclass(frozen=True, slots=True)
class EulerAncestral:
    """Euler a little further than the next sigma, then fresh noise up to it."""

    sigmas: tuple[float, ...]

    def step(
        self, latent_BCYX: Tensor, step: int, history: list[Node], sample_noise: SampleNoise
    ) -> StepGenerator:
        sigma, next_sigma = self.sigmas[step], self.sigmas[step + 1]
        down = sigma_below(sigma, next_sigma)
        velocity_BCYX = yield Point(latent_BCYX, sigma)
        return add_noise(
            latent_BCYX + (down - sigma) * velocity_BCYX, down, next_sigma, sample_noise()
        )


def sigma_below(sigma: float, next_sigma: float) -> float:
    """Return the sigma from which fresh noise leads back up to the next one.

    The flow form of the ancestral step: the further the step, the more of its noise is fresh.
    """
    return next_sigma * next_sigma / sigma


def add_noise(latent_BCYX: Tensor, down: float, sigma: float, noise_BCYX: Tensor) -> Tensor:
    """Return a latent at `down` with as much fresh noise as makes it one at `sigma`.

    Scaling by s turns (1 - down) into (1 - sigma) of image; variances then add up to sigma^2.
    """
    scale = (1 - sigma) / (1 - down)
    added = math.sqrt(max(sigma * sigma - (scale * down) ** 2, 0.0))
    return scale * latent_BCYX + added * noise_BCYX
