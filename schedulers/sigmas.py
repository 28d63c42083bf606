"""Sigma schedules: the noise levels of the steps, from pure noise (1) to the image (0).

`shifted` is the reference's own. The others spread the same number of steps between its first
sigma and its last one above 0, so that none of them leaves more noise in the image. `karras` and
`exponential` are spread over the ratio of noise to image, sigma / (1 - sigma), which is what their
authors' sigma is; spread over the flow's own sigma they would spend most steps where the image is
nearly done (10 to 18 dB lost on the tiny checkpoint, docs/sampling.md). The first two sigmas are
the shifted ones, for the ratio at sigma 1 is infinite.
"""

import math

import torch
from torch import Tensor

from schedulers.catalog import SigmaSchedule

# Source: Karras et al. 2022 (arXiv 2206.00364), equation 5.
KARRAS_RHO = 7.0
# Of the third sigma, at most, or twice that of the last. From Stable Diffusion's largest, 14.6, at
# the second, the first step jumped over the noise levels at which the layout is decided: 8 dB lost
# at 12 steps. With larger ones errors on the exact flow of the tests pass the specification's.
MAX_RATIO = 22.0
# Source: Lee et al. 2024 (arXiv 2407.12173), section 4.2: alpha = beta = 0.6.
BETA_SHAPE = 0.6
# Below this many steps there is nothing to spread: all schedules are `shifted`.
MIN_SPREAD_STEPS = 3
_BETA_NODES = 4096


def shifted_sigmas(num_steps: int, shift: float) -> Tensor:
    """Return the reference's sigmas, float32 [num_steps + 1], falling from exactly 1 to exactly 0.

    A shift above 1 spends more steps at high noise.

    Source: Esser et al. 2024 (arXiv 2403.03206), equation 23; `flow_shift` in the checkpoint's
    generation_config.json.

    Raises:
        ValueError: fewer than one step, or a shift that is not positive.
    """
    if num_steps < 1:
        raise ValueError(f"{num_steps} steps cannot be taken; at least 1 is needed")
    if not shift > 0:
        raise ValueError(f"shift is {shift}; it must be above 0")
    linear = torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)
    sigmas = (shift * linear / (1.0 + (shift - 1.0) * linear)).float()
    sigmas[0], sigmas[-1] = 1.0, 0.0
    return sigmas


def build_sigmas(schedule: SigmaSchedule, num_steps: int, shift: float) -> Tensor:
    """Return a schedule by its name, float32 [num_steps + 1], falling from exactly 1 to exactly 0.

    Raises:
        ValueError: fewer than one step, or a shift that is not positive.
    """
    shifted = shifted_sigmas(num_steps, shift)
    if schedule == "shifted" or num_steps < MIN_SPREAD_STEPS:
        return shifted
    high, low = float(shifted[0]), float(shifted[-2])
    if schedule == "beta":
        way = torch.linspace(0.0, 1.0, num_steps, dtype=torch.float64)
        inner = low + (high - low) * _beta_quantiles(1.0 - way)
    else:
        rho = KARRAS_RHO if schedule == "karras" else math.inf
        third, last = float(shifted[2] / (1.0 - shifted[2])), low / (1.0 - low)
        ratios = _spread_ratios(min(third, max(MAX_RATIO, 2.0 * last)), last, num_steps - 2, rho)
        inner = torch.cat((shifted[:2].double(), ratios / (1.0 + ratios)))
    sigmas = torch.cat((inner.float(), torch.zeros(1)))
    sigmas[0], sigmas[-2] = shifted[0], shifted[-2]
    return sigmas


def _spread_ratios(high: float, low: float, count: int, rho: float) -> Tensor:
    """Return ratios of noise to image from high to low: even in their rho-th root.

    An infinite rho makes them even in their logarithm.
    """
    way = torch.linspace(0.0, 1.0, count, dtype=torch.float64)
    if math.isinf(rho):
        return torch.exp(math.log(high) + way * (math.log(low) - math.log(high)))
    root_high, root_low = high ** (1 / rho), low ** (1 / rho)
    spread: Tensor = (root_high + way * (root_low - root_high)) ** rho
    return spread


def _beta_quantiles(shares: Tensor) -> Tensor:
    """Return the quantiles of the symmetric beta distribution, by quadrature.

    With x = sin^2(angle) the density has no pole: (sin * cos)^(2 * BETA_SHAPE - 1).
    """
    angle = torch.linspace(0.0, math.pi / 2, _BETA_NODES, dtype=torch.float64)
    density = (angle.sin() * angle.cos()).clamp_min(0.0) ** (2 * BETA_SHAPE - 1)
    mass = torch.cumulative_trapezoid(density, angle)
    mass = torch.cat((torch.zeros(1, dtype=torch.float64), mass / mass[-1]))
    right = torch.searchsorted(mass, shares).clamp(1, _BETA_NODES - 1)
    share = (shares - mass[right - 1]) / (mass[right] - mass[right - 1])
    angles = angle[right - 1] + share * (angle[right] - angle[right - 1])
    return angles.sin() ** 2


def timesteps_of(sigmas: Tensor) -> Tensor:
    """Return the timestep of each step, 1000 * sigma: float, never rounded."""
    return sigmas[:-1] * 1000.0
