"""Residual predictors: the damped Taylor forecast and the scaled Hermite one."""

import pytest
import torch

from cache.predictors import DampedTaylor, LastResidual, ScaledHermite


@pytest.mark.parametrize("order", [1, 2])
def test_a_forecast_is_exact_for_a_polynomial_of_its_order(order: int) -> None:
    estimate = DampedTaylor(order)
    curve_BSD = torch.tensor([[[1.0, -2.0, 3.0], [2.0, 0.5, -1.0]]])
    for sigma in (0.9, 0.85, 0.7, 0.6)[: order + 2]:
        estimate.keep(sigma, curve_BSD * sigma**order)
    torch.testing.assert_close(estimate.at(0.5), curve_BSD * 0.5**order)


def test_a_forecast_holds_until_it_has_been_seen_to_come_true() -> None:
    forecast, hold = DampedTaylor(1), LastResidual()
    for sigma, value in ((0.9, 1.0), (0.8, 2.0)):
        for estimate in (forecast, hold):
            estimate.keep(sigma, torch.full((1, 2, 3), value))
        assert torch.equal(forecast.at(0.5), hold.at(0.5))


def test_each_channel_of_each_row_takes_the_share_of_the_forecast_that_came_true() -> None:
    forecast = DampedTaylor(1)
    for sigma, values in (
        (0.9, [0.0, 0.0, 0.0, 0.0]),
        (0.8, [1.0, 1.0, 1.0, 0.0]),
        (0.7, [2.0, 1.25, 0.0, 0.0]),  # as forecast, a quarter of it, the other way, nothing
    ):
        forecast.keep(sigma, torch.tensor(values).expand(1, 5, 4))
    expected = torch.tensor([3.0, 1.25 + 0.25 * 0.25, 0.0, 0.0]).expand(1, 5, 4)
    torch.testing.assert_close(forecast.at(0.6), expected)


CURVE = torch.tensor([[[1.0, -2.0, 3.0], [2.0, 0.5, -1.0]]])


def test_a_hermite_forecast_without_contraction_is_bit_equal_to_the_last_residual() -> None:
    forecast, hold = ScaledHermite(2, 0.0), LastResidual()
    for sigma in (0.9, 0.8, 0.65):
        for estimate in (forecast, hold):
            estimate.keep(sigma, CURVE * sigma**2)
    assert torch.equal(forecast.at(0.6), hold.at(0.6))


def test_a_hermite_forecast_contracted_by_the_root_of_a_half_is_exact_for_lines() -> None:
    forecast = ScaledHermite(1, 0.5**0.5)
    for sigma in (0.9, 0.85, 0.7):
        forecast.keep(sigma, 1 + CURVE * sigma)
    torch.testing.assert_close(forecast.at(0.55), 1 + CURVE * 0.55)


@pytest.mark.parametrize("order", [1, 2])
def test_a_contraction_of_a_half_follows_half_of_a_line(order: int) -> None:
    """A line has no second difference, however uneven its nodes are."""
    forecast = ScaledHermite(order, 0.5)
    for sigma in (0.9, 0.8, 0.65):
        forecast.keep(sigma, CURVE * sigma)
    torch.testing.assert_close(forecast.at(0.6), CURVE * (0.65 + 0.5 * (0.6 - 0.65)))


def test_a_hermite_forecast_of_even_steps_is_the_published_sum() -> None:
    """last + c H1(c x) change + c^2 / 2 H2(c x) second difference, worked out by hand."""
    forecast = ScaledHermite(2, 0.6)
    for sigma, value in ((0.9, 1.0), (0.8, 3.0), (0.7, 4.0)):
        forecast.keep(sigma, torch.full((1, 2, 3), value))
    c, x, change, second = 0.6, 1.0, 1.0, -1.0
    expected = 4.0 + c * (2 * c * x) * change + c**2 / 2 * (4 * (c * x) ** 2 - 2) * second
    torch.testing.assert_close(forecast.at(0.6), torch.full((1, 2, 3), expected))
