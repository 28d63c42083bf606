import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schedulers.euler import Euler
from schedulers.grids import shifted_sigmas, timesteps_of


@given(num_steps=st.integers(1, 100), shift=st.floats(0.1, 20))
def test_sigmas_fall_strictly_from_one_to_zero(num_steps: int, shift: float) -> None:
    sigmas = shifted_sigmas(num_steps, shift).tolist()
    assert (sigmas[0], sigmas[-1], len(sigmas)) == (1.0, 0.0, num_steps + 1)
    assert all(a > b for a, b in itertools.pairwise(sigmas))


@given(num_steps=st.integers(1, 100))
def test_a_shift_of_one_is_the_even_grid(num_steps: int) -> None:
    torch.testing.assert_close(
        timesteps_of(shifted_sigmas(num_steps, 1.0)),
        torch.arange(num_steps, 0, -1) * (1000.0 / num_steps),
    )


@given(num_steps=st.integers(1, 100), seed=st.integers(0, 9))
def test_euler_is_exact_for_a_constant_velocity(num_steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    noise, picture = torch.randn(2, 1, 4, 2, 2, generator=generator)
    solver = Euler(shifted_sigmas(num_steps, 3.0))
    latent = noise
    for step in range(num_steps):
        latent = solver.step(latent, noise - picture, step)
    torch.testing.assert_close(latent, picture, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("num_steps", "shift"), [(0, 3.0), (-1, 3.0), (5, 0.0), (5, -1.0), (5, float("nan"))]
)
def test_a_grid_that_cannot_be_is_refused(num_steps: int, shift: float) -> None:
    with pytest.raises(ValueError, match=r"must be|at least"):
        shifted_sigmas(num_steps, shift)
