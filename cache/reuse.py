"""A step cache put together: votes that decide, and an estimate that stands in."""

from collections.abc import Callable

from torch import Tensor

from cache.estimate import Estimate
from cache.protocol import Evaluation, Moment, RunFirst, RunRest
from cache.votes import EarlyVote, FirstBlockVote

# Turns this process's vote into that of all processes that draw the picture together.
Agree = Callable[[bool], bool]


class Reuse:
    """Reuses a step of one picture when the plan's window and all votes allow it.

    The decision falls once a step, at its first evaluation; each evaluation of a step has its own
    residual. With a first-block vote the first layer always runs and the residual is that of all
    others; without one it is that of all layers.
    """

    def __init__(
        self,
        window: tuple[int, int],
        max_consecutive: int,
        early_vote: EarlyVote | None,
        first_block: FirstBlockVote | None,
        new_estimate: Callable[[], Estimate],
        agree: Agree = bool,
    ) -> None:
        self._start, self._end = window
        self._max_consecutive = max_consecutive
        self._early_vote = early_vote
        self._first_block = first_block
        self._new_estimate = new_estimate
        self._agree = agree
        self._estimates: dict[int, Estimate] = {}
        self._is_reused = False
        self._run = 0
        self.reused_steps: list[int] = []
        self.num_computed_evaluations = 0

    def evaluate(self, moment: Moment, x_BSD: Tensor) -> Evaluation:
        """Return the layers' output, computed or estimated."""
        base_BSD, votes = x_BSD, True
        is_deciding = moment.stage == 0
        if is_deciding and self._early_vote is not None:
            votes = self._early_vote.votes_reuse(moment, x_BSD, self._is_allowed(moment))
        first_BSD: Tensor | None = None
        if self._first_block is not None:
            base_BSD = first_BSD = yield RunFirst(x_BSD)
            if is_deciding and votes and self._is_allowed(moment):
                votes = self._first_block.votes_reuse(first_BSD - x_BSD)
        if is_deciding:
            self._settle(moment, self._agree(votes and self._is_allowed(moment)))
        if self._is_reused:
            estimate_BSD = self._estimates[moment.stage].at(moment.sigma)
            return base_BSD + estimate_BSD.to(base_BSD.dtype)
        if first_BSD is None:
            first_BSD = yield RunFirst(x_BSD)
        last_BSD = yield RunRest(first_BSD)
        self.num_computed_evaluations += 1
        if self._first_block is not None and is_deciding:
            self._first_block.keep(first_BSD - x_BSD)
        estimate = self._estimates.setdefault(moment.stage, self._new_estimate())
        estimate.keep(moment.sigma, last_BSD - base_BSD)
        return last_BSD

    def _is_allowed(self, moment: Moment) -> bool:
        return (
            moment.is_inner
            and self._start <= moment.step < self._end
            and self._run < self._max_consecutive
            and bool(self._estimates)
        )

    def _settle(self, moment: Moment, is_reused: bool) -> None:
        self._is_reused = is_reused
        self._run = self._run + 1 if is_reused else 0
        if is_reused:
            self.reused_steps.append(moment.step)
        if self._early_vote is not None:
            self._early_vote.settle(is_reused)
