"""Sigma schedules fitted to a checkpoint: the noise levels at which Euler's steps err least.

A trajectory of many steps is recorded. From each of its noise levels an Euler step to each lower
one misses the recorded latent by some distance; dynamic programming finds the path of so many
steps with the smallest sum of distances. Where the velocity turns, steps become short.

Source: Chen et al. 2024 (arXiv 2405.11326), algorithm 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Recorded:
    """One image's way: latents at `sigmas`, which fall from 1 to 0, and velocities but at 0.

    Shapes: latents_P, velocities_P float32 [sigmas, ...], the velocities one fewer.
    """

    sigmas: tuple[float, ...]
    latents: Tensor
    velocities: Tensor


def miss_distances(recorded: Recorded) -> Tensor:
    """Return the root mean square miss of an Euler step from level i to level j: float64 [P, P].

    Steps that do not go down have an infinite miss.
    """
    latents_PZ = recorded.latents.flatten(1)
    velocities_PZ = recorded.velocities.flatten(1)
    sigmas_P = torch.tensor(recorded.sigmas)
    num_levels = len(recorded.sigmas)
    misses_PP = torch.full((num_levels, num_levels), torch.inf, dtype=torch.float64)
    for start in range(num_levels - 1):
        way_P1 = (sigmas_P[start + 1 :] - sigmas_P[start]).unsqueeze(1)
        ended_PZ = latents_PZ[start] + way_P1 * velocities_PZ[start]
        error_P = (ended_PZ - latents_PZ[start + 1 :]).double().square().mean(dim=1).sqrt()
        misses_PP[start, start + 1 :] = error_P
    return misses_PP


def fit_grids(recorded: Sequence[Recorded], counts: Sequence[int]) -> dict[int, tuple[float, ...]]:
    """Return for each number of steps the sigmas, from exactly 1 to exactly 0, that miss least.

    Deterministic: of equal sums the path with the higher noise level is taken.

    Raises:
        ValueError: no trajectories, different noise levels, or fewer of them than steps.
    """
    if len({way.sigmas for way in recorded}) != 1:
        raise ValueError(f"{len(recorded)} trajectories; one or more with equal sigmas are needed")
    sigmas = recorded[0].sigmas
    if not 1 <= min(counts) <= max(counts) < len(sigmas):
        raise ValueError(
            f"{min(counts)} to {max(counts)} steps cannot be fitted to {len(sigmas) - 1} recorded "
            "ones; record more"
        )
    misses_PP = torch.stack([miss_distances(way) for way in recorded]).mean(dim=0)
    # After k steps: the smallest sum of misses at each level, and the level before it.
    sums_P = torch.full((len(sigmas),), torch.inf, dtype=torch.float64)
    sums_P[0] = 0.0
    before: list[list[int]] = []
    grids = {}
    for num_steps in range(1, max(counts) + 1):
        sums_P, previous_P = (sums_P.unsqueeze(1) + misses_PP).min(dim=0)
        before.append(previous_P.tolist())
        if num_steps in counts:
            grids[num_steps] = _trace(before, sigmas)
    return grids


def _trace(before: Sequence[Sequence[int]], sigmas: Sequence[float]) -> tuple[float, ...]:
    """Return the sigmas of the best path to the last level."""
    level, path = len(sigmas) - 1, [sigmas[-1]]
    for previous in reversed(before):
        level = previous[level]
        path.append(sigmas[level])
    return tuple(reversed(path))
