import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schedulers.catalog import SigmaSchedule
from schedulers.sigmas import build_sigmas, shifted_sigmas, timesteps_of

SCHEDULES: tuple[SigmaSchedule, ...] = ("shifted", "karras", "exponential", "beta")


@given(num_steps=st.integers(1, 100), shift=st.floats(0.1, 20))
def test_sigmas_fall_strictly_from_one_to_zero(num_steps: int, shift: float) -> None:
    sigmas = shifted_sigmas(num_steps, shift).tolist()
    assert (sigmas[0], sigmas[-1], len(sigmas)) == (1.0, 0.0, num_steps + 1)
    assert all(a > b for a, b in itertools.pairwise(sigmas))


@given(num_steps=st.integers(1, 100))
def test_a_shift_of_one_gives_even_sigmas(num_steps: int) -> None:
    torch.testing.assert_close(
        timesteps_of(shifted_sigmas(num_steps, 1.0)),
        torch.arange(num_steps, 0, -1) * (1000.0 / num_steps),
    )


@given(schedule=st.sampled_from(SCHEDULES), num_steps=st.integers(1, 100), shift=st.floats(0.5, 10))
def test_every_schedule_falls_between_the_same_ends(
    schedule: SigmaSchedule, num_steps: int, shift: float
) -> None:
    sigmas, shifted = build_sigmas(schedule, num_steps, shift), shifted_sigmas(num_steps, shift)
    assert sigmas.dtype == torch.float32
    assert len(sigmas) == num_steps + 1
    assert all(a > b for a, b in itertools.pairwise(sigmas.tolist()))
    assert torch.equal(sigmas[[0, -2, -1]], shifted[[0, -2, -1]])
    if num_steps < 3:
        assert torch.equal(sigmas, shifted)


def test_the_beta_schedule_is_that_of_the_beta_distribution() -> None:
    """Quantiles of Beta(0.6, 0.6), computed once with SciPy 1.17.1 (`scipy.stats.beta.ppf`)."""
    sigmas = build_sigmas("beta", 5, 1.0)
    inner = (sigmas[1:-2] - sigmas[-2]) / (1 - sigmas[-2])
    expected = torch.tensor([0.82431962, 0.5, 0.17568038])
    torch.testing.assert_close(inner, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("num_steps", "shift"), [(0, 3.0), (-1, 3.0), (5, 0.0), (5, -1.0), (5, float("nan"))]
)
def test_a_schedule_that_cannot_be_is_refused(num_steps: int, shift: float) -> None:
    with pytest.raises(ValueError, match=r"must be|at least"):
        shifted_sigmas(num_steps, shift)
