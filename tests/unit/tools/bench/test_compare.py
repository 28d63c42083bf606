"""Two load runs compared: what chance explains is no change, and what it does not is one."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from cli.console import write_json
from server.runware.errors import CommandError
from tools.bench.compare import Comparison, compare_runs
from tools.bench.load_plan import Level, LoadPlan, Mix, PlannedTask
from tools.bench.load_report import LoadReport, new_report, summarize
from tools.bench.load_run import Sample

RUNNER = CliRunner()
MIX = Mix(
    prompts=("a fox",), sizes=((256, 256),), steps=(4,), transports=("sync",), guidance=5.0, seed=3
)
TASK = PlannedTask(
    prompt="a fox", image_seed=1, width_px=256, height_px=256, num_steps=4, transport="sync"
)
CLOSED, OPEN = Level("closed", 1), Level("open", 2.0)


def run(
    scale: float = 1.0,
    *,
    draw: int = 0,
    num: int = 100,
    spread: float = 0.05,
    level: Level = CLOSED,
    num_failed: int = 0,
) -> LoadReport:
    """Return a run whose latencies are some normal draws around a second, times `scale`."""
    seconds = scale * np.random.default_rng(draw).normal(1.0, spread, num).clip(0.01)
    samples, now = [], 0.0
    for number, value in enumerate(map(float, seconds)):
        code = "timeout" if number < num_failed else ""
        started = None if code else now + 0.1 * value
        samples.append(Sample(TASK, code, now, now, started, now + value))
        now += value
    plan = LoadPlan(mix=MIX, levels=(level,), num_requests=num, num_warm_up=0)
    return new_report(plan, "m", "w", [summarize(level, samples)])


def verdicts(comparison: Comparison) -> dict[str, str]:
    return {change.figure: change.verdict for change in comparison.changes}


def test_draws_of_one_distribution_are_no_change() -> None:
    for draw in range(1, 11):
        comparison = compare_runs(run(draw=0), run(draw=draw), 5)
        assert not comparison.is_worse
        assert set(verdicts(comparison).values()) <= {"same", "unclear"}


def test_twenty_percent_more_is_worse_and_as_much_less_is_better() -> None:
    worse = compare_runs(run(), run(1.2, draw=1), 5)
    assert worse.is_worse
    assert verdicts(worse) == {
        "latency p50": "worse", "latency p90": "worse", "queue wait p50": "worse",
        "seconds an image": "worse", "failed, %": "same",
    }  # fmt: skip
    for change in worse.changes[:4]:
        assert change.percent == pytest.approx(20, abs=5)
        assert change.low < change.percent < change.high
    better = compare_runs(run(), run(0.8, draw=1), 5)
    assert not better.is_worse
    assert set(list(verdicts(better).values())[:4]) == {"better"}


def test_a_change_within_the_threshold_does_not_count_however_certain() -> None:
    before, after = run(spread=0.001), run(1.03, draw=1, spread=0.001)
    assert not compare_runs(before, after, 5).is_worse
    assert compare_runs(before, after, 2).is_worse


def test_a_change_that_chance_explains_does_not_count_however_large() -> None:
    noisy = compare_runs(run(num=6, spread=0.5), run(1.1, draw=5, num=6, spread=0.5), 5)
    assert not noisy.is_worse
    (p50,) = [change for change in noisy.changes if change.figure == "latency p50"]
    assert p50.verdict == "unclear"
    assert p50.high - p50.low > 50


def test_an_open_loop_is_not_judged_by_its_rate_and_few_values_not_by_their_tail() -> None:
    opened = compare_runs(run(level=OPEN, num=30), run(level=OPEN, num=30, draw=1), 5)
    assert set(verdicts(opened)) == {"latency p50", "queue wait p50", "failed, %"}
    many = compare_runs(run(num=400), run(num=400, draw=1), 5)
    assert "latency p99" in verdicts(many)


def test_more_failures_are_worse_if_they_are_more_than_a_few() -> None:
    assert compare_runs(run(), run(num_failed=30), 5).is_worse
    assert verdicts(compare_runs(run(), run(num_failed=30), 5))["failed, %"] == "worse"
    assert not compare_runs(run(), run(num_failed=3), 1).is_worse
    assert verdicts(compare_runs(run(num_failed=30), run(), 5))["failed, %"] == "better"


def test_runs_of_other_tasks_or_loads_are_not_compared() -> None:
    other = run()
    other.plan["mix"]["steps"] = [8]
    with pytest.raises(CommandError, match=r"steps is \[4\] in the first and \[8\]"):
        compare_runs(run(), other, 5)
    with pytest.raises(CommandError, match=r"no level in common: 1 at once and 2 requests/s"):
        compare_runs(run(), run(level=OPEN), 5)
    both = replace(run(), levels=[*run().levels, *run(level=OPEN).levels])
    assert compare_runs(run(), both, 5).unmatched == ["2 requests/s"]


def test_the_exit_code_says_whether_it_is_worse(tmp_path: Path) -> None:
    before, after = tmp_path / "a.json", tmp_path / "b.json"
    write_json(before, asdict(run()))
    write_json(after, asdict(run(1.2, draw=1)))

    def compare(*words: object) -> tuple[int, str]:
        result = RUNNER.invoke(app, ["bench", "compare", *map(str, words)])
        return result.exit_code, result.output

    code, output = compare(before, after)
    assert code == 1
    assert "4 of 5 figures are worse by more than 5" in output
    assert compare(after, before)[0] == 0
    assert compare(before, after, "--threshold", 40)[0] == 0
    after.write_text(json.dumps({"ratio": 1}))
    code, output = compare(before, after)
    assert (code, "holds no load run" in " ".join(output.split())) == (2, True)
