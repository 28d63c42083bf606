"""Sigma schedules fitted to recorded trajectories, on a flow whose solution is known."""

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from schedulers.build import build_scheduler
from schedulers.fitted import Recorded, fit_grids, miss_distances
from schedulers.sigmas import shifted_sigmas
from tests.property.flows import TWO_MODES, drive


def record(num_steps: int, seed: int = 0) -> Recorded:
    """Return the exact way of the two modes from sigma 1 to 0."""
    sigmas = tuple(shifted_sigmas(num_steps, 3.0).tolist())
    x_B = torch.randn(64, generator=torch.Generator().manual_seed(seed))
    latents, velocities = [x_B], []
    for sigma, next_sigma in pairwise(sigmas):
        velocities.append(TWO_MODES.velocity(x_B, sigma).float())
        for part in range(20):
            here = sigma + (next_sigma - sigma) * part / 20
            x_B = x_B + (next_sigma - sigma) / 20 * TWO_MODES.velocity(x_B, here).float()
        latents.append(x_B)
    return Recorded(sigmas, torch.stack(latents), torch.stack(velocities))


@given(
    values=st.lists(st.floats(-3, 3), min_size=24, max_size=24),
    counts=st.lists(st.integers(1, 7), min_size=1, max_size=4),
)
def test_every_grid_falls_strictly_from_one_to_zero_through_recorded_levels(
    values: list[float], counts: list[int]
) -> None:
    sigmas = tuple(shifted_sigmas(7, 3.0).tolist())
    latents = torch.tensor(values).unflatten(0, (8, 3))
    way = Recorded(sigmas, latents, -latents[1:])
    grids = fit_grids([way], counts)
    assert set(grids) == set(counts)
    for num_steps, grid in grids.items():
        assert (grid[0], grid[-1], len(grid)) == (1.0, 0.0, num_steps + 1)
        assert all(before > after for before, after in pairwise(grid))
        assert set(grid) <= set(sigmas)
    assert fit_grids([way], counts) == grids


def test_no_path_of_as_many_steps_misses_less() -> None:
    way = record(8)
    misses_PP = miss_distances(way)

    def sum_of(path: tuple[int, ...]) -> float:
        return sum(float(misses_PP[start, stop]) for start, stop in pairwise(path))

    best = min(sum_of((0, *inner, 8)) for inner in combinations(range(1, 8), 3))
    grid = fit_grids([way], [4])[4]
    assert sum_of(tuple(way.sigmas.index(sigma) for sigma in grid)) == pytest.approx(best)


def test_as_many_steps_as_were_recorded_are_those_that_were() -> None:
    way = record(6)
    assert fit_grids([way, record(6, seed=1)], [6])[6] == way.sigmas


@pytest.mark.parametrize("num_steps", [6, 10])
def test_euler_errs_less_on_a_fitted_grid_than_on_the_shifted_one(num_steps: int) -> None:
    ways = [record(60, seed) for seed in range(3)]
    grid = fit_grids(ways, [num_steps])[num_steps]
    start = torch.randn(1000, generator=torch.Generator().manual_seed(9))
    exact = TWO_MODES.solve_exactly(start)

    def error(fitted: tuple[float, ...] | None) -> Tensor:
        solver = build_scheduler("Default", num_steps, 3.0, fitted=fitted).solver
        return (drive(solver, start, TWO_MODES.velocity).latent_BCYX - exact).square().mean()

    assert error(grid) < 0.8 * error(None)


def test_a_scheduler_over_fitted_sigmas_says_so() -> None:
    scheduler = build_scheduler("Default", 2, 3.0, fitted=(1.0, 0.6, 0.0))
    assert (scheduler.resolved, scheduler.sigma_schedule) == ("Euler fitted", "fitted")
    assert scheduler.solver.sigmas == (1.0, 0.6, 0.0)


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(ValueError, match="3 fitted sigmas are not those of 4 steps"):
        build_scheduler("Default", 4, 3.0, fitted=(1.0, 0.6, 0.0))
    with pytest.raises(ValueError, match="record more"):
        fit_grids([record(4)], [5])
    with pytest.raises(ValueError, match="equal sigmas"):
        fit_grids([record(4), record(5)], [3])
