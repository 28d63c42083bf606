"""Residual predictors for reused steps: the last residual, or a damped Taylor forecast."""

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
