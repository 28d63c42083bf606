"""No step reuse: reference numerics."""

from torch import Tensor

from cache.protocol import Evaluation, Moment, RunFirst, RunRest


class Off:
    """Runs every layer at every step."""

    def evaluate(self, moment: Moment, x_BSD: Tensor) -> Evaluation:
        """Return the layers' computed output."""
        first_BSD = yield RunFirst(x_BSD)
        return (yield RunRest(first_BSD))
