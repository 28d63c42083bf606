"""No step cache: every layer runs at every step, with the reference's numbers."""

from torch import Tensor

from cache.protocol import Evaluation, RunFirstBlock, RunRemainingBlocks, StepContext


class NoCache:
    """Runs every layer at every step."""

    def evaluate(self, context: StepContext, x_BSD: Tensor) -> Evaluation:
        """Return the layers' computed output."""
        first_BSD = yield RunFirstBlock(x_BSD)
        return (yield RunRemainingBlocks(first_BSD))
