"""Comparison of two load runs: what got better or worse, beyond what chance explains.

The spread of every figure is estimated by a block bootstrap: samples are drawn again in blocks of
neighbours, because tasks that run beside each other wait for each other.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from server.runware.errors import CommandError
from tools.bench.load_plan import Level
from tools.bench.load_report import LevelResult, LoadReport

Verdict = Literal["better", "worse", "same", "unclear"]
Values = NDArray[np.float64]

NUM_DRAWS = 2000
# The 99 % interval: a comparison has a dozen figures, and 95 % would often find one by chance.
INTERVAL, NORMAL_99 = (0.5, 99.5), 2.576
# Fewer values than these say nothing about the spread of a percentile: a few lie beyond it.
_LEAST = {50: 5, 90: 40, 99: 400}


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One figure in both runs. `percent` is the change with its 99 % interval.

    Better or worse: the interval leaves out 0. Same: it lies within the threshold. Unclear: too
    wide for either; more requests would tell.
    """

    level: str
    figure: str
    before: float
    after: float
    percent: float
    low: float
    high: float
    verdict: Verdict
    is_beyond: bool  # worse, and by more than the threshold


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """All changes, and the levels that only one of the runs has."""

    changes: list[Change]
    unmatched: list[str]

    @property
    def is_worse(self) -> bool:
        return any(change.is_beyond for change in self.changes)


def compare_runs(before: LoadReport, after: LoadReport, threshold_percent: float) -> Comparison:
    """Compare two runs level by level.

    Raises:
        CommandError: they did not send the same tasks, or have no level in common.
    """
    _check_plans(before.plan, after.plan)
    old, new = ({result.level: result for result in run.levels} for run in (before, after))
    common = [level for level in old if level in new]
    if not common:
        raise CommandError(
            f"the runs have no level in common: {_names(old)} and {_names(new)}; run both with "
            "the same --concurrency or --rate"
        )
    changes = [
        change
        for level in common
        for change in _compare_level(old[level], new[level], threshold_percent)
    ]
    unmatched = [level.name for level in (*old, *new) if not (level in old and level in new)]
    return Comparison(changes=changes, unmatched=unmatched)


def _check_plans(before: dict[str, Any], after: dict[str, Any]) -> None:
    flat_before, flat_after = (
        {**{k: v for k, v in plan.items() if k != "mix"}, **plan["mix"]} for plan in (before, after)
    )
    for name in ("num_requests", "timeout_s"):  # neither changes what a task is
        flat_before.pop(name, None), flat_after.pop(name, None)
    different = [k for k in flat_before if flat_before[k] != flat_after.get(k)]
    if different:
        name = different[0]
        raise CommandError(
            f"the runs did not send the same tasks: {name} is {flat_before[name]} in the first and "
            f"{flat_after.get(name)} in the second; run both with the same options"
        )


def _names(levels: dict[Level, LevelResult]) -> str:
    return ", ".join(level.name for level in levels) or "none"


def _compare_level(old: LevelResult, new: LevelResult, threshold: float) -> list[Change]:
    name = old.level.name
    changes = []
    for figure, percent, a, b in (
        ("latency p50", 50, old.latencies_s, new.latencies_s),
        ("latency p90", 90, old.latencies_s, new.latencies_s),
        ("latency p99", 99, old.latencies_s, new.latencies_s),
        ("queue wait p50", 50, old.queue_waits_s, new.queue_waits_s),
    ):
        if min(len(a), len(b)) >= _LEAST[percent]:
            values = np.array(a), np.array(b)
            changes.append(_compare(name, figure, values, _percentile(percent), threshold))
    if old.kind == "closed" and min(old.num_ok, new.num_ok) >= _LEAST[50]:
        gaps = _gaps(old), _gaps(new)  # an open loop's are the client's choice
        changes.append(_compare(name, "seconds an image", gaps, _mean, threshold))
    return [*changes, _compare_failures(name, old, new, threshold)]


def _compare(
    level: str,
    figure: str,
    values: tuple[Values, Values],
    statistic: Callable[[Values], Values],
    threshold: float,
) -> Change:
    """Compare a figure of which less is better."""
    before, after = values
    ours, theirs = float(statistic(before[None])[0]), float(statistic(after[None])[0])
    random = np.random.default_rng(0)
    drawn_before = statistic(_resample(before, random))
    drawn_after = statistic(_resample(after, random))
    low, high = np.percentile(_percent(drawn_before, drawn_after), INTERVAL)
    percent = float(_percent(np.array(ours), np.array(theirs)))
    return Change(
        level=level,
        figure=figure,
        before=ours,
        after=theirs,
        percent=percent,
        low=float(low),
        high=float(high),
        verdict=_verdict(float(low), float(high), threshold),
        is_beyond=float(low) > 0 and percent > threshold,
    )


def _verdict(low: float, high: float, threshold: float) -> Verdict:
    if -threshold <= low and high <= threshold:
        return "same"
    if low > 0:
        return "worse"
    if high < 0:
        return "better"
    return "unclear"


def _compare_failures(level: str, old: LevelResult, new: LevelResult, threshold: float) -> Change:
    """Compare the shares of tasks that failed; the change is in points of percent."""
    shares = [1 - run.num_ok / max(1, run.num_requests) for run in (old, new)]
    # Agresti and Caffo: one success and one failure more in each, so that 0 has a spread, too.
    adjusted = [
        ((run.num_requests - run.num_ok + 1) / (run.num_requests + 2), run.num_requests + 2)
        for run in (old, new)
    ]
    spread = NORMAL_99 * math.sqrt(sum(share * (1 - share) / number for share, number in adjusted))
    middle = 100 * (adjusted[1][0] - adjusted[0][0])
    low, high = middle - 100 * spread, middle + 100 * spread
    percent = 100 * (shares[1] - shares[0])
    return Change(
        level=level,
        figure="failed, %",
        before=100 * shares[0],
        after=100 * shares[1],
        percent=percent,
        low=low,
        high=high,
        verdict="same" if percent == 0 else _verdict(low, high, threshold),
        is_beyond=low > 0 and percent > threshold,
    )


def _gaps(result: LevelResult) -> Values:
    """Return the seconds between ends of images: their mean is the time an image takes."""
    return np.diff(np.array([0.0, *result.ends_s]))


def _percentile(percent: float) -> Callable[[Values], Values]:
    return lambda rows: np.percentile(rows, percent, axis=1)


def _mean(rows: Values) -> Values:
    means: Values = rows.mean(axis=1)
    return means


def _percent(before: Values, after: Values) -> Values:
    """Return the changes in percent; a value of 0 counts as a tenth of a millisecond."""
    change: Values = 100 * (after / np.maximum(before, 1e-4) - 1)
    return change


def _resample(values: Values, random: np.random.Generator) -> Values:
    """Draw rows as long as the values from blocks of neighbours, the last followed by the first."""
    size = len(values)
    block = max(1, round(math.sqrt(size)))
    num_blocks = math.ceil(size / block)
    starts = random.integers(0, size, (NUM_DRAWS, num_blocks, 1))
    places = (starts + np.arange(block)) % size
    drawn: Values = values[places.reshape(NUM_DRAWS, -1)[:, :size]]
    return drawn
