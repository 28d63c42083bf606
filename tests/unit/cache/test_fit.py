"""The fits behind step_cache.json: polynomial and profile."""

from collections.abc import Callable

import pytest
import torch

from cache.fit import StepDelta, build_profile, fit_polynomial
from cache.policies import evaluate_polynomial


def changes(
    output: Callable[[float], float], noise: float = 0.0, low: float = 0.01, high: float = 0.3
) -> list[StepDelta]:
    generator = torch.Generator().manual_seed(0)
    signals = torch.linspace(low, high, 400).tolist()
    errors = (noise * torch.randn(400, generator=generator)).tolist()
    return [
        StepDelta(0.5, 0.4, x, output(x) + error) for x, error in zip(signals, errors, strict=True)
    ]


def test_a_rising_curve_is_found_again() -> None:
    fit = fit_polynomial(changes(lambda x: 0.02 + 0.5 * x + 3 * x**3, noise=1e-3))
    assert fit.refusal == ""
    assert fit.r2 > 0.99
    for x in (0.02, 0.1, 0.28):
        wanted = 0.02 + 0.5 * x + 3 * x**3
        assert evaluate_polynomial(fit.poly, x) == pytest.approx(wanted, abs=2e-3)


def test_a_lower_degree_is_taken_when_the_fourth_would_fall() -> None:
    """Saturating data makes a quartic turn at the end; a straight line does not."""
    fit = fit_polynomial(changes(lambda x: min(x, 0.22), noise=0.01))
    assert fit.refusal == ""
    assert len(fit.poly) - 1 < 4


@pytest.mark.parametrize(
    ("output", "noise", "reason"),
    [
        (lambda x: 0.3 - x, 0.0, "falls"),
        (lambda x: 0.5 * (x - 0.15), 0.0, "negative"),
        (lambda x: 0.1 + 0.01 * x, 0.05, "R2|falls"),
    ],
)
def test_a_bad_fit_is_refused_with_the_reason(
    output: Callable[[float], float], noise: float, reason: str
) -> None:
    fit = fit_polynomial(changes(output, noise))
    assert fit.poly == ()
    assert any(word in fit.refusal for word in reason.split("|"))


def test_too_few_changes_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        fit_polynomial(changes(lambda x: x)[:4])


def test_a_profile_adds_up_to_the_change_of_a_whole_image() -> None:
    """Two images of 4 and 8 steps whose output changes 0.8 in all, evenly over sigma."""
    recorded = [
        StepDelta(1 - i / n, 1 - (i + 1) / n, 0.1, 0.8 / n) for n in (4, 8) for i in range(n)
    ]
    profile = build_profile(recorded)
    assert profile[0] == (1.0, 0.0)
    assert profile[-1][0] == 0.0
    assert profile[-1][1] == pytest.approx(0.8)
    halfway = next(change for sigma, change in profile if abs(sigma - 0.5) < 1e-9)
    assert halfway == pytest.approx(0.4)
