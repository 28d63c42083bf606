"""DPM-Solver++: multistep, singlestep and SDE, for the flow's alpha and sigma.

All of them integrate the predicted image over lambda = log((1 - sigma) / sigma). At sigma 1 and 0
lambda is infinite: a step that begins or ends there, or reaches back to there, is of first order.

Source: Lu et al. 2022 (arXiv 2211.01095), algorithms 1 and 2, and appendix D for the SDE.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from schedulers.multistep import limit_order
from schedulers.protocol import Node, Point, SampleNoise, StepGenerator


def half_log_snr(sigma: float) -> float:
    """Return lambda; -inf at sigma 1, inf at sigma 0."""
    if sigma >= 1:
        return -math.inf
    return math.inf if sigma <= 0 else math.log((1 - sigma) / sigma)


@dataclass(frozen=True, slots=True)
class DPMSolverMultistep:
    """Orders 1 to 3 from the images of earlier steps; eta 1 adds the noise of the SDE."""

    sigmas: tuple[float, ...]
    order: int
    eta: float = 0.0

    def step(
        self, latent_BCYX: Tensor, step: int, history: list[Node], sample_noise: SampleNoise
    ) -> StepGenerator:
        sigma, next_sigma = self.sigmas[step], self.sigmas[step + 1]
        velocity_BCYX = yield Point(latent_BCYX, sigma)
        history.append(Node(sigma, latent_BCYX, velocity_BCYX))
        order = limit_order(self.order, len(self.sigmas) - 1)
        noise_BCYX = sample_noise() if self.eta else None
        return exponential_step(history[-order:], next_sigma, self.eta, noise_BCYX)


@dataclass(frozen=True, slots=True)
class DPMSolverSinglestep:
    """Second order from pairs of steps: the second one starts where the first one started.

    With noise the second one goes on from where the first one ended: the noise in between is
    part of the trajectory.
    """

    sigmas: tuple[float, ...]
    eta: float = 0.0

    def step(
        self, latent_BCYX: Tensor, step: int, history: list[Node], sample_noise: SampleNoise
    ) -> StepGenerator:
        sigma, next_sigma = self.sigmas[step], self.sigmas[step + 1]
        velocity_BCYX = yield Point(latent_BCYX, sigma)
        history.append(Node(sigma, latent_BCYX, velocity_BCYX))
        is_second = step % 2 == 1
        if self.eta:
            nodes = history[-2:] if is_second else history[-1:]
            return exponential_step(nodes, next_sigma, self.eta, sample_noise())
        if is_second and next_sigma > 0 and history[-2].sigma < 1:
            return _pair_step(history[-2], history[-1], next_sigma)
        return exponential_step(history[-1:], next_sigma)


def _pair_step(start: Node, middle: Node, next_sigma: float) -> Tensor:
    """Return the latent at the next sigma, from the start, with the slope up to the middle."""
    begin, end = half_log_snr(start.sigma), half_log_snr(next_sigma)
    ratio = (half_log_snr(middle.sigma) - begin) / (end - begin)
    x0_BCYX = start.x0
    slope_BCYX = (middle.x0 - x0_BCYX) / ratio
    decay = math.exp(begin - end)
    target_BCYX = x0_BCYX + 0.5 * slope_BCYX
    return (next_sigma / start.sigma) * start.latent_BCYX + (
        (1 - next_sigma) * (1 - decay)
    ) * target_BCYX


def exponential_step(
    nodes: list[Node], next_sigma: float, eta: float = 0.0, noise_BCYX: Tensor | None = None
) -> Tensor:
    """Return the latent at the next sigma, from the last node, by an exponential multistep rule.

    `nodes` are one to three, newest last; those at sigma 1, which give no slope, are left out.
    """
    last = nodes[-1]
    here, there = half_log_snr(last.sigma), half_log_snr(next_sigma)
    h = there - here
    past = [node for node in nodes[:-1] if node.sigma < 1]
    rate = 1 + eta
    decay = math.exp(-rate * h)
    kept = next_sigma / last.sigma * (math.exp(-eta * h) if eta else 1.0)
    next_BCYX = kept * last.latent_BCYX + (1 - next_sigma) * (1 - decay) * last.x0
    if past and math.isfinite(h):
        next_BCYX = next_BCYX + (1 - next_sigma) * _slopes(past, last, rate * h, h)
    if noise_BCYX is not None:
        next_BCYX = next_BCYX + next_sigma * math.sqrt(-math.expm1(-2 * eta * h)) * noise_BCYX
    return next_BCYX


def _slopes(past: list[Node], last: Node, scaled_h: float, h: float) -> Tensor:
    """Return what the first and second difference of the image add to a step of length h."""
    here = half_log_snr(last.sigma)
    nearer = (here - half_log_snr(past[-1].sigma)) / h
    first_BCYX = (last.x0 - past[-1].x0) / nearer
    if len(past) == 1:
        return -math.expm1(-scaled_h) * 0.5 * first_BCYX
    further = (half_log_snr(past[-1].sigma) - half_log_snr(past[-2].sigma)) / h
    second_BCYX = (past[-1].x0 - past[-2].x0) / further
    curve_BCYX = (first_BCYX - second_BCYX) / (nearer + further)
    phi_2 = math.expm1(-scaled_h) / scaled_h + 1
    phi_3 = phi_2 / scaled_h - 0.5
    return phi_2 * (first_BCYX + nearer * curve_BCYX) - phi_3 * curve_BCYX
