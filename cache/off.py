"""No step reuse: reference numerics."""

from torch import Tensor

from cache.protocol import RunLayers


class Off:
    """Runs every layer at every step."""

    def run(self, step: int, x_BSD: Tensor, run_layers: RunLayers) -> Tensor:
        """Return the layers' computed output."""
        return run_layers(x_BSD)
