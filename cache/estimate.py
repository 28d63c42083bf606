"""What stands in for the layers at a reused step: what they added before, held or forecast."""

from typing import Protocol

from torch import Tensor


class Estimate(Protocol):
    """Remembers what the layers added to their input at computed steps."""

    def keep(self, sigma: float, residual_BSD: Tensor) -> None:
        """Remember the residual of a computed step."""
        ...

    def at(self, sigma: float) -> Tensor:
        """Return the residual at another noise level. Shapes: -> residual_BSD."""
        ...


class Hold:
    """The last computed residual."""

    def __init__(self) -> None:
        self._last_BSD: Tensor | None = None

    def keep(self, sigma: float, residual_BSD: Tensor) -> None:
        self._last_BSD = residual_BSD

    def at(self, sigma: float) -> Tensor:
        assert self._last_BSD is not None
        return self._last_BSD


class Forecast:
    """The polynomial through the last computed residuals, over sigma.

    Order 1 needs two of them, order 2 three; with fewer it is of as high an order as they allow.
    Over sigma and not over the step's number: steps are of uneven length.

    Source of the idea: Liu et al. 2025 (arXiv 2503.06923), who expand features over step numbers.
    """

    def __init__(self, order: int) -> None:
        self._order = order
        self._nodes: list[tuple[float, Tensor]] = []

    def keep(self, sigma: float, residual_BSD: Tensor) -> None:
        self._nodes = [*self._nodes[-self._order :], (sigma, residual_BSD)]

    def at(self, sigma: float) -> Tensor:
        total_BSD: Tensor | None = None
        for own, residual_BSD in self._nodes:
            weight = 1.0
            for other, _ in self._nodes:
                if other != own:
                    weight *= (sigma - other) / (own - other)
            part_BSD = weight * residual_BSD
            total_BSD = part_BSD if total_BSD is None else total_BSD + part_BSD
        assert total_BSD is not None
        return total_BSD
