"""Heun and the midpoint method: two evaluations a step."""

from dataclasses import dataclass

from torch import Tensor

from schedulers.euler import add_noise, sigma_below
from schedulers.protocol import Node, Point, SampleNoise, StepGenerator


@dataclass(frozen=True, slots=True)
class Heun:
    """Second order: the mean of the velocities at both ends of the step. The last step is Euler's.

    At sigma 0 the velocity is of no use: no step follows.
    """

    sigmas: tuple[float, ...]

    def step(
        self, latent_BCYX: Tensor, step: int, history: list[Node], sample_noise: SampleNoise
    ) -> StepGenerator:
        sigma, next_sigma = self.sigmas[step], self.sigmas[step + 1]
        velocity_BCYX = yield Point(latent_BCYX, sigma)
        end_BCYX = latent_BCYX + (next_sigma - sigma) * velocity_BCYX
        if next_sigma == 0:
            return end_BCYX
        end_velocity_BCYX = yield Point(end_BCYX, next_sigma)
        return latent_BCYX + (next_sigma - sigma) * 0.5 * (velocity_BCYX + end_velocity_BCYX)


@dataclass(frozen=True, slots=True)
class Midpoint:
    """Second order: the velocity half-way. The last step is Euler's."""

    sigmas: tuple[float, ...]

    def step(
        self, latent_BCYX: Tensor, step: int, history: list[Node], sample_noise: SampleNoise
    ) -> StepGenerator:
        sigma, next_sigma = self.sigmas[step], self.sigmas[step + 1]
        if next_sigma == 0:
            velocity_BCYX = yield Point(latent_BCYX, sigma)
            return latent_BCYX - sigma * velocity_BCYX
        end_BCYX = yield from _to_midpoint_and_on(latent_BCYX, sigma, next_sigma)
        return end_BCYX


@dataclass(frozen=True, slots=True)
class MidpointAncestral:
    """The midpoint method a little further than the next sigma, then fresh noise up to it."""

    sigmas: tuple[float, ...]

    def step(
        self, latent_BCYX: Tensor, step: int, history: list[Node], sample_noise: SampleNoise
    ) -> StepGenerator:
        sigma, next_sigma = self.sigmas[step], self.sigmas[step + 1]
        if next_sigma == 0:
            velocity_BCYX = yield Point(latent_BCYX, sigma)
            return latent_BCYX - sigma * velocity_BCYX
        down = sigma_below(sigma, next_sigma)
        down_BCYX = yield from _to_midpoint_and_on(latent_BCYX, sigma, down)
        return add_noise(down_BCYX, down, next_sigma, sample_noise())


def _to_midpoint_and_on(latent_BCYX: Tensor, sigma: float, end: float) -> StepGenerator:
    middle = 0.5 * (sigma + end)
    velocity_BCYX = yield Point(latent_BCYX, sigma)
    velocity_BCYX = yield Point(latent_BCYX + (middle - sigma) * velocity_BCYX, middle)
    return latent_BCYX + (end - sigma) * velocity_BCYX
