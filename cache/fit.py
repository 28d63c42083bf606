"""Fit the TeaCache polynomial, or a noise-level profile, from recorded step deltas."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_DEGREE, MIN_R2 = 4, 0.5
_CHECKED_POINTS = 200


@dataclass(frozen=True, slots=True)
class StepDelta:
    """One step: the relative changes of signal and output since the step before, and where.

    `sigma` is this step's noise level, `previous_sigma` that of the step before.
    """

    previous_sigma: float
    sigma: float
    signal: float
    output: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A polynomial of the signal's change; empty with the reason when none may be used."""

    poly: tuple[float, ...]
    x_range: tuple[float, float]
    rmse: float
    r2: float
    refusal: str


def fit_polynomial(deltas: Sequence[StepDelta]) -> Fit:
    """Fit the output's change over the signal's, by least squares.

    The degree is 4, or the highest below it whose polynomial neither falls nor is negative
    anywhere between the smallest and the largest signal seen. Nothing is extrapolated: a signal
    outside is held to the range.

    Raises:
        ValueError: fewer changes than a polynomial of degree 4 has coefficients, or not finite.
    """
    x_R = torch.tensor([delta.signal for delta in deltas], dtype=torch.float64)
    y_R = torch.tensor([delta.output for delta in deltas], dtype=torch.float64)
    if len(deltas) <= MAX_DEGREE or not torch.isfinite(x_R + y_R).all():
        raise ValueError(f"{len(deltas)} recorded changes are too few, or some are not finite")
    # With outliers, most of the range, and of the polynomial on it, would hold no data.
    low, high = float(x_R.quantile(0.005)), float(x_R.quantile(0.995))
    x_range = (low, high)
    held_R = x_R.clamp(low, high)
    best = Fit((), x_range, float("inf"), 0.0, "")
    for degree in range(MAX_DEGREE, 0, -1):
        poly = _least_squares(held_R, y_R, degree)
        errors_R = _values(poly, held_R) - y_R
        rmse = float(errors_R.square().mean().sqrt())
        spread = float((y_R - y_R.mean()).square().mean())
        r2 = 1.0 - rmse**2 / spread if spread > 0 else 0.0
        refusal = _refuse(poly, low, high, r2)
        if not refusal:
            return Fit(poly, x_range, rmse, r2, "")
        if degree == MAX_DEGREE:
            best = Fit((), x_range, rmse, r2, refusal)
    return best


def build_profile(
    deltas: Sequence[StepDelta], num_points: int = 40
) -> tuple[tuple[float, float], ...]:
    """Return (sigma, output change accumulated from 1 down to it), falling in sigma.

    A step's change is spread evenly over the noise levels that it passes; the profile is the mean
    density of all steps, so it serves any sigma schedule.
    """
    edges = torch.linspace(1.0, 0.0, num_points + 1, dtype=torch.float64)
    density_P = torch.zeros(num_points, dtype=torch.float64)
    weight_P = torch.zeros(num_points, dtype=torch.float64)
    for delta in deltas:
        upper = torch.minimum(edges[:-1], torch.tensor(delta.previous_sigma))
        lower = torch.maximum(edges[1:], torch.tensor(delta.sigma))
        overlap_P = (upper - lower).clamp_min(0.0)
        density_P += overlap_P * delta.output / max(delta.previous_sigma - delta.sigma, 1e-9)
        weight_P += overlap_P
    mean_P = torch.where(weight_P > 0, density_P / weight_P.clamp_min(1e-12), 0.0)
    passed_P = torch.cumsum(mean_P * (edges[:-1] - edges[1:]), dim=0)
    points = zip(edges.tolist(), [0.0, *passed_P.tolist()], strict=True)
    return tuple((sigma, change) for sigma, change in points)


def _least_squares(x_R: Tensor, y_R: Tensor, degree: int) -> tuple[float, ...]:
    """Return the coefficients, the highest power's first."""
    scale = float(x_R.abs().max()) or 1.0
    powers_RZ = torch.stack([(x_R / scale) ** p for p in range(degree, -1, -1)], dim=1)
    found = torch.linalg.lstsq(powers_RZ, y_R.unsqueeze(1)).solution.squeeze(1)
    return tuple(float(c) / scale**p for c, p in zip(found, range(degree, -1, -1), strict=True))


def _values(poly: Sequence[float], x_R: Tensor) -> Tensor:
    value_R = torch.zeros_like(x_R)
    for coefficient in poly:
        value_R = value_R * x_R + coefficient
    return value_R


def _refuse(poly: Sequence[float], low: float, high: float, r2: float) -> str:
    """Return why a polynomial may not be used, or nothing."""
    values_P = _values(poly, torch.linspace(low, high, _CHECKED_POINTS, dtype=torch.float64))
    if float(values_P.min()) < 0:
        return "the fitted change is negative somewhere"
    if float(values_P.diff().min()) < 0:
        return "the fitted change falls while the signal's rises"
    return f"R2 is {r2:.2f}, below {MIN_R2}" if r2 < MIN_R2 else ""
