"""What a step cache is: it gets hidden states and a way to run the layers, never the model."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

RunLayers = Callable[[Tensor], Tensor]


class StepCache(Protocol):
    """Decides at each step whether the layers run. One instance per job; all state is its own."""

    def run(self, step: int, x_BSD: Tensor, run_layers: RunLayers) -> Tensor:
        """Return the layers' output for x_BSD, computed or estimated."""
        ...
