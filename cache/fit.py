"""From recorded changes to a calibration: how the signal foretells the output's change."""

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


def fit_polynomial(changes: Sequence[StepDelta]) -> Fit:
    """Fit the output's change over the signal's, by least squares.

    The degree is 4, or the highest below it whose polynomial neither falls nor is negative
    anywhere between the smallest and the largest signal seen. Nothing is extrapolated: a signal
    outside is held to the range.

    Raises:
        ValueError: fewer changes than a polynomial of degree 4 has coefficients, or not finite.
    """
    x_T = torch.tensor([change.signal for change in changes], dtype=torch.float64)
    y_T = torch.tensor([change.output for change in changes], dtype=torch.float64)
    if len(changes) <= MAX_DEGREE or not torch.isfinite(x_T + y_T).all():
        raise ValueError(f"{len(changes)} recorded changes are too few, or some are not finite")
    # Outliers would make the range, and the polynomial on it, mostly empty.
    low, high = float(x_T.quantile(0.005)), float(x_T.quantile(0.995))
    x_range = (low, high)
    held_T = x_T.clamp(low, high)
    best = Fit((), x_range, float("inf"), 0.0, "")
    for degree in range(MAX_DEGREE, 0, -1):
        poly = _least_squares(held_T, y_T, degree)
        errors_T = _values(poly, held_T) - y_T
        rmse = float(errors_T.square().mean().sqrt())
        spread = float((y_T - y_T.mean()).square().mean())
        r2 = 1.0 - rmse**2 / spread if spread > 0 else 0.0
        refusal = _refuse(poly, low, high, r2)
        if not refusal:
            return Fit(poly, x_range, rmse, r2, "")
        if degree == MAX_DEGREE:
            best = Fit((), x_range, rmse, r2, refusal)
    return best


def build_profile(
    changes: Sequence[StepDelta], num_points: int = 40
) -> tuple[tuple[float, float], ...]:
    """Return (sigma, output change accumulated from 1 down to it), falling in sigma.

    A step's change is spread evenly over the noise levels that it passes; the profile is the mean
    density of all steps, so it serves any grid.
    """
    edges = torch.linspace(1.0, 0.0, num_points + 1, dtype=torch.float64)
    density_P = torch.zeros(num_points, dtype=torch.float64)
    weight_P = torch.zeros(num_points, dtype=torch.float64)
    for change in changes:
        upper = torch.minimum(edges[:-1], torch.tensor(change.previous_sigma))
        lower = torch.maximum(edges[1:], torch.tensor(change.sigma))
        overlap_P = (upper - lower).clamp_min(0.0)
        density_P += overlap_P * change.output / max(change.previous_sigma - change.sigma, 1e-9)
        weight_P += overlap_P
    mean_P = torch.where(weight_P > 0, density_P / weight_P.clamp_min(1e-12), 0.0)
    passed_P = torch.cumsum(mean_P * (edges[:-1] - edges[1:]), dim=0)
    points = zip(edges.tolist(), [0.0, *passed_P.tolist()], strict=True)
    return tuple((sigma, change) for sigma, change in points)


def _least_squares(x_T: Tensor, y_T: Tensor, degree: int) -> tuple[float, ...]:
    """Return the coefficients, the highest power's first."""
    scale = float(x_T.abs().max()) or 1.0
    powers_TP = torch.stack([(x_T / scale) ** p for p in range(degree, -1, -1)], dim=1)
    found = torch.linalg.lstsq(powers_TP, y_T.unsqueeze(1)).solution.squeeze(1)
    return tuple(float(c) / scale**p for c, p in zip(found, range(degree, -1, -1), strict=True))


def _values(poly: Sequence[float], x_T: Tensor) -> Tensor:
    value_T = torch.zeros_like(x_T)
    for coefficient in poly:
        value_T = value_T * x_T + coefficient
    return value_T


def _refuse(poly: Sequence[float], low: float, high: float, r2: float) -> str:
    """Return why a polynomial may not be used, or nothing."""
    values_P = _values(poly, torch.linspace(low, high, _CHECKED_POINTS, dtype=torch.float64))
    if float(values_P.min()) < 0:
        return "the fitted change is negative somewhere"
    if float(values_P.diff().min()) < 0:
        return "the fitted change falls while the signal's rises"
    return f"R2 is {r2:.2f}, below {MIN_R2}" if r2 < MIN_R2 else ""
