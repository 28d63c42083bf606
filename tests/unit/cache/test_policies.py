"""Skip policies by themselves."""

import torch

from cache.policies import NoiseLevelPolicy, TeaCachePolicy, relative_l1
from cache.protocol import StepContext


def test_a_profile_counts_the_change_between_noise_levels() -> None:
    policy = NoiseLevelPolicy(0.25, profile=((1.0, 0.0), (0.5, 0.4), (0.0, 1.0)))
    x = torch.zeros(1, 2, 2)
    contexts = [StepContext(i, 5, 0, sigma) for i, sigma in enumerate((1.0, 0.8, 0.6, 0.5, 0.1))]
    decisions = []
    for context in contexts:
        decisions.append(policy.should_skip(context, x, is_allowed=context.step > 0))
        policy.update(decisions[-1])
    assert decisions == [False, True, False, True, False]


def test_relative_change_of_nothing_is_nothing() -> None:
    assert relative_l1(torch.zeros(3), torch.zeros(3)) == 0.0


def decide(relaxation: float) -> list[bool]:
    """Return what TeaCache decides where each step changes by a tenth and 0.15 are allowed."""
    policy = TeaCachePolicy(
        0.15, lambda context, x: x, (1.0, 0.0), (0.0, 1.0), relaxation=relaxation
    )
    decisions = []
    for step, sigma in enumerate((1.0, 0.98, 0.96, 0.94, 0.8, 0.6, 0.4)):
        context = StepContext(step, 8, 0, sigma)
        x = torch.full((1, 2, 2), 1.1**step)
        decisions.append(policy.should_skip(context, x, is_allowed=step > 0))
        policy.update(decisions[-1])
    return decisions


def test_a_relaxation_allows_more_at_low_noise_alone_and_1_is_teacache() -> None:
    assert decide(1.0) == [False, True, False, True, False, True, False]
    assert decide(2.5) == [False, True, False, True, True, True, False]
