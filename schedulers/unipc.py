"""UniPC, predictor and corrector: each evaluation first corrects the step that led to it.

Source: Zhao et al. 2023 (arXiv 2302.04867), algorithms 5 and 6 with B_2(h) = e^h - 1, predicting
the image.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from schedulers.dpm_solver import half_log_snr
from schedulers.multistep import limit_order
from schedulers.protocol import Node, Point, SampleNoise, StepGenerator


@dataclass(frozen=True, slots=True)
class UniPC:
    """Second or third order, one evaluation a step."""

    sigmas: tuple[float, ...]
    order: int

    def step(
        self, latent_BCYX: Tensor, step: int, history: list[Node], sample_noise: SampleNoise
    ) -> StepGenerator:
        sigma = self.sigmas[step]
        velocity_BCYX = yield Point(latent_BCYX, sigma)
        x0_BCYX = latent_BCYX - sigma * velocity_BCYX
        if history:
            nodes = history[-self._order_at(step - 1, len(history)) :]
            latent_BCYX = _move(nodes, sigma, corrected_by=x0_BCYX)
        # The evaluation is of the predicted latent; the next step starts from the corrected one.
        history.append(Node(sigma, latent_BCYX, (latent_BCYX - x0_BCYX) / sigma))
        nodes = history[-self._order_at(step, len(history)) :]
        return _move(nodes, self.sigmas[step + 1], corrected_by=None)

    def _order_at(self, step: int, num_nodes: int) -> int:
        """Return the order of a step, which falls to 1 at the last one."""
        num_steps = len(self.sigmas) - 1
        return min(limit_order(self.order, num_steps), num_steps - step, num_nodes)


def _move(nodes: list[Node], sigma: float, corrected_by: Tensor | None) -> Tensor:
    """Return the latent at sigma from the last node; with the image found there, corrected."""
    last = nodes[-1]
    here = half_log_snr(last.sigma)
    h = half_log_snr(sigma) - here
    # From sigma 1 the distance in lambda is infinite: no slope.
    past = [node for node in nodes[:-1] if node.sigma < 1]
    growth = math.expm1(-h)
    latent_BCYX = sigma / last.sigma * last.latent_BCYX - (1 - sigma) * growth * last.x0
    ratios = [(half_log_snr(node.sigma) - here) / h for node in past]
    slopes = [(node.x0 - last.x0) / ratio for node, ratio in zip(past, ratios, strict=True)]
    if corrected_by is not None:
        ratios.append(1.0)
        slopes.append(corrected_by - last.x0)
    for weight, slope_BCYX in zip(_weights(ratios, h), slopes, strict=True):
        latent_BCYX = latent_BCYX - (1 - sigma) * growth * weight * slope_BCYX
    return latent_BCYX


def _weights(ratios: list[float], h: float) -> list[float]:
    """Return the weight of each slope, so that polynomials up to their number are integrated.

    A single slope gets the 1/2 that the authors' own B_2 form has.
    """
    if not ratios:
        return []
    if len(ratios) == 1:
        return [0.5]
    growth = math.expm1(-h)
    moment, factorial = growth / -h - 1, 1.0
    moments = []
    for power in range(len(ratios)):
        moments.append(moment * factorial / growth)
        factorial *= power + 2
        moment = moment / -h - 1 / factorial
    powers = torch.tensor([[r**p for r in ratios] for p in range(len(ratios))], dtype=torch.float64)
    found: list[float] = torch.linalg.solve(
        powers, torch.tensor(moments, dtype=torch.float64)
    ).tolist()
    return found
