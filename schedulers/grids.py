"""Sigma grids: where the solver stops between pure noise (1) and the picture (0)."""

import torch
from torch import Tensor


def shifted_sigmas(num_steps: int, shift: float) -> Tensor:
    """Return the reference's grid, float32 [num_steps + 1], falling from exactly 1 to exactly 0.

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


def timesteps_of(sigmas: Tensor) -> Tensor:
    """Return what the model is told at each step, 1000 * sigma, float and never rounded."""
    return sigmas[:-1] * 1000.0
