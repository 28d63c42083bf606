"""Residual predictors for reused steps: the last residual, damped Taylor, or scaled Hermite."""

from typing import Protocol

from torch import Tensor


class ResidualPredictor(Protocol):
    """Predicts what the layers add to their input, from their residuals at computed steps."""

    def keep(self, sigma: float, residual_BSD: Tensor) -> None:
        """Remember the residual of a computed step."""
        ...

    def at(self, sigma: float) -> Tensor:
        """Return the residual at another noise level. Shapes: -> residual_BSD."""
        ...


class LastResidual:
    """The last computed residual."""

    def __init__(self) -> None:
        self._last_BSD: Tensor | None = None

    def keep(self, sigma: float, residual_BSD: Tensor) -> None:
        self._last_BSD = residual_BSD

    def at(self, sigma: float) -> Tensor:
        assert self._last_BSD is not None
        return self._last_BSD


class DampedTaylor:
    """TaylorSeer with a learned damping: a polynomial forecast, as far as it has come true.

    The polynomial runs through the last computed residuals over sigma. Each computed step shows
    how good a forecast of it would have been: by least squares over a channel's tokens, the share
    of the forecast change that came true. The next forecast is this share of the change, between
    0 (the last residual) and 1. With each computed step the earlier ones count half. Undamped, the
    polynomial is worse than the last residual wherever the residual jumps, as it does when the
    router chooses other experts.

    Order 1 needs two residuals and a third to learn from, order 2 one more; until then the last
    residual is returned.
    Over sigma and not over the step's number: steps are of uneven length.

    Source of the polynomial: Liu et al. 2025 (arXiv 2503.06923), who expand over step numbers.
    """

    MEMORY = 0.5

    def __init__(self, order: int) -> None:
        self._order = order
        self._nodes: list[tuple[float, Tensor]] = []
        self._true_B1D: Tensor | None = None  # forecast change times actual change, summed
        self._square_B1D: Tensor | None = None  # forecast change squared, summed

    def keep(self, sigma: float, residual_BSD: Tensor) -> None:
        if len(self._nodes) > self._order:
            self._learn(self._change_at(sigma), residual_BSD.float() - self._nodes[-1][1].float())
        self._nodes = [*self._nodes[-self._order :], (sigma, residual_BSD)]

    def at(self, sigma: float) -> Tensor:
        last_BSD = self._nodes[-1][1]
        if self._true_B1D is None or self._square_B1D is None:
            return last_BSD
        share_B1D = (self._true_B1D / self._square_B1D.clamp_min(1e-12)).clamp(0, 1)
        return last_BSD + share_B1D * self._change_at(sigma)

    def _learn(self, forecast_BSD: Tensor, actual_BSD: Tensor) -> None:
        true_B1D = (forecast_BSD * actual_BSD).sum(dim=1, keepdim=True)
        square_B1D = forecast_BSD.square().sum(dim=1, keepdim=True)
        if self._true_B1D is not None and self._square_B1D is not None:
            true_B1D = true_B1D + self.MEMORY * self._true_B1D
            square_B1D = square_B1D + self.MEMORY * self._square_B1D
        self._true_B1D, self._square_B1D = true_B1D, square_B1D

    def _change_at(self, sigma: float) -> Tensor:
        """Return how much the polynomial moves from the last residual: float32, residual_BSD."""
        change_BSD = -self._nodes[-1][1].float()
        for node_sigma, residual_BSD in self._nodes:
            weight = 1.0
            for other, _ in self._nodes:
                if other != node_sigma:
                    weight *= (sigma - other) / (node_sigma - other)
            change_BSD = change_BSD + weight * residual_BSD.float()
        return change_BSD


class ScaledHermite:
    """HiCache: a forecast in scaled Hermite polynomials of the last residuals' differences.

    With x the way since the last computed step in units of the way before it, the forecast is
    sum over i of difference_i / i! * c^i * H_i(c * x), H_i the physicists' polynomials and c the
    contraction. Of order 1 that is 2 c^2 x of the last change: contraction 0 repeats the last
    residual, 0.5 follows half of its line, and sqrt(1/2) the line itself. Over sigma and not over
    the step's number: steps are of uneven length.

    Source: Feng et al. 2025 (arXiv 2508.16984), the scaled basis.
    """

    def __init__(self, order: int, contraction: float) -> None:
        self._order = order
        self._contraction = contraction
        self._nodes: list[tuple[float, Tensor]] = []  # newest first

    def keep(self, sigma: float, residual_BSD: Tensor) -> None:
        self._nodes = [(sigma, residual_BSD), *self._nodes[: self._order]]

    def at(self, sigma: float) -> Tensor:
        last_sigma, last_BSD = self._nodes[0]
        if len(self._nodes) == 1 or self._contraction == 0:
            return last_BSD
        before_sigma, before_BSD = self._nodes[1]
        way = last_sigma - before_sigma
        x, c = (sigma - last_sigma) / way, self._contraction
        change_BSD = last_BSD.float() - before_BSD.float()
        forecast_BSD = last_BSD.float() + 2 * c * c * x * change_BSD
        if len(self._nodes) > 2:
            # The second difference as it would be if the ways were equal.
            first_sigma, first_BSD = self._nodes[2]
            way_before = before_sigma - first_sigma
            slope_BSD = (before_BSD.float() - first_BSD.float()) * (way / way_before)
            second_BSD = (change_BSD - slope_BSD) * (2 * way / (way + way_before))
            forecast_BSD = forecast_BSD + c * c * (2 * c * c * x * x - 1) * second_BSD
        return forecast_BSD
