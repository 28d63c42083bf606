"""The residual step cache: policies decide which steps are reused, predictors supply residuals."""

from collections.abc import Callable

from torch import Tensor

from cache.policies import EarlyPolicy, FirstBlockPolicy
from cache.predictors import ResidualPredictor
from cache.protocol import Evaluation, RunFirstBlock, RunRemainingBlocks, StepContext

# Turns this rank's decision into that of all ranks that generate the image.
Agree = Callable[[bool], bool]


class ResidualCache:
    """Reuses a step of one image when the plan's window and all policies allow it.

    The decision is taken once a step, at its first evaluation; each evaluation of a step has its
    own residual. With a first-block policy the first layer always runs and the residual is that of
    all others; without one it is that of all layers.
    """

    def __init__(
        self,
        window: tuple[int, int],
        max_consecutive: int,
        early_policy: EarlyPolicy | None,
        first_block: FirstBlockPolicy | None,
        new_predictor: Callable[[], ResidualPredictor],
        agree: Agree = bool,
    ) -> None:
        self._start, self._end = window
        self._max_consecutive = max_consecutive
        self._early_policy = early_policy
        self._first_block = first_block
        self._new_predictor = new_predictor
        self._agree = agree
        self._predictors: dict[int, ResidualPredictor] = {}
        self._is_reused = False
        self._run = 0
        self.reused_steps: list[int] = []
        self.num_computed_evaluations = 0

    def evaluate(self, context: StepContext, x_BSD: Tensor) -> Evaluation:
        """Return the layers' output, computed or estimated."""
        base_BSD, may_skip = x_BSD, self._is_allowed(context)
        is_deciding = context.evaluation == 0
        if is_deciding and self._early_policy is not None:
            may_skip = self._early_policy.should_skip(context, x_BSD, may_skip) and may_skip
        first_BSD: Tensor | None = None
        if self._first_block is not None:
            base_BSD = first_BSD = yield RunFirstBlock(x_BSD)
            if is_deciding and may_skip:
                may_skip = self._first_block.should_skip(first_BSD - x_BSD)
        if is_deciding:
            self._update(context, self._agree(may_skip))
        if self._is_reused:
            residual_BSD = self._predictors[context.evaluation].at(context.sigma)
            return base_BSD + residual_BSD.to(base_BSD.dtype)
        if first_BSD is None:
            first_BSD = yield RunFirstBlock(x_BSD)
        last_BSD = yield RunRemainingBlocks(first_BSD)
        self.num_computed_evaluations += 1
        if self._first_block is not None and is_deciding:
            self._first_block.keep(first_BSD - x_BSD)
        predictor = self._predictors.setdefault(context.evaluation, self._new_predictor())
        predictor.keep(context.sigma, last_BSD - base_BSD)
        return last_BSD

    def _is_allowed(self, context: StepContext) -> bool:
        return (
            context.is_inner
            and self._start <= context.step < self._end
            and self._run < self._max_consecutive
            and bool(self._predictors)
        )

    def _update(self, context: StepContext, is_reused: bool) -> None:
        self._is_reused = is_reused
        self._run = self._run + 1 if is_reused else 0
        if is_reused:
            self.reused_steps.append(context.step)
        if self._early_policy is not None:
            self._early_policy.update(is_reused)
