"""Load runs: what is sent and when, from when latency counts, and the figures made of it."""

import asyncio
import itertools
import statistics
import time
from dataclasses import replace
from pathlib import Path

import pytest

from server.runware.errors import CommandError
from tools.bench.load_chart import plot_load_chart
from tools.bench.load_client import Outcome
from tools.bench.load_plan import Level, LoadPlan, Mix, PlannedTask, new_levels, plan_tasks
from tools.bench.load_report import new_report, percentiles, read_report, summarize
from tools.bench.load_run import Sample, run_closed, run_open

MIX = Mix(
    prompts=("a fox", "a car"),
    sizes=((256, 256), (256, 256), (512, 256)),
    steps=(4, 8),
    transports=("sync", "async", "websocket"),
    guidance=5.0,
    seed=3,
)
TASK = PlannedTask(
    prompt="a fox", image_seed=1, width_px=1000, height_px=500, num_steps=4, transport="sync"
)


def test_every_level_sends_the_same_tasks_and_another_seed_sends_others() -> None:
    closed = plan_tasks(MIX, Level("closed", 4), 200)
    opened = plan_tasks(MIX, Level("open", 0.5), 200)
    assert [replace(task, due_s=0.0) for task in opened] == closed
    assert plan_tasks(MIX, Level("closed", 8), 200) == closed
    assert plan_tasks(replace(MIX, seed=4), Level("closed", 4), 200) != closed
    assert {task.transport for task in closed} == {"sync", "async", "websocket"}
    assert {task.prompt for task in closed} == {"a fox", "a car"}
    assert len({task.image_seed for task in closed}) == 200


def test_a_value_that_is_repeated_is_drawn_as_much_more_often() -> None:
    sizes = [task.width_px for task in plan_tasks(MIX, Level("closed", 1), 3000)]
    assert sizes.count(256) / len(sizes) == pytest.approx(2 / 3, abs=0.03)


def test_the_times_between_tasks_of_an_open_loop_are_exponential() -> None:
    due = [task.due_s for task in plan_tasks(MIX, Level("open", 2.0), 4000)]
    gaps = [b - a for a, b in itertools.pairwise(due)]
    assert due[0] == 0.0
    assert statistics.mean(gaps) == pytest.approx(0.5, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(0.5, rel=0.05)  # as only this one's is
    slower = [task.due_s for task in plan_tasks(MIX, Level("open", 1.0), 4000)]
    assert slower == pytest.approx([2 * seconds for seconds in due])


def test_levels_are_sorted_and_a_rate_of_nothing_is_refused() -> None:
    levels = new_levels([4, 1, 4], [2.0, 0.5])
    assert [level.name for level in levels] == [
        "1 at once", "4 at once", "0.5 requests/s", "2 requests/s",
    ]  # fmt: skip
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(CommandError, match="above 0"):
            new_levels([], [wrong])


class BlockingClient:
    """Blocks the whole client at its first task, as a client does that cannot keep up."""

    def __init__(self, block_s: float) -> None:
        self.block_s = block_s

    async def send(self, task: PlannedTask) -> Outcome:
        time.sleep(self.block_s)
        self.block_s = 0.0
        return Outcome("", None, time.perf_counter())


def test_latency_in_an_open_loop_counts_from_when_a_task_was_due() -> None:
    tasks = [replace(TASK, due_s=due_s) for due_s in (0.0, 0.01, 0.02)]
    samples = asyncio.run(run_open(BlockingClient(0.2), tasks, lambda num_done: None))
    assert [sample.due_s for sample in samples] == [0.0, 0.01, 0.02]
    for sample in samples[1:]:  # nothing of their own took any time
        assert sample.sent_s > 0.19
        assert sample.latency_s > 0.17
    assert summarize(Level("open", 1), samples).send_lag_p99_s > 0.17


class CountingClient:
    """Counts how many tasks are under way; each ends when the others had their turn."""

    def __init__(self) -> None:
        self.num_now = self.most = self.num_sent = 0

    async def send(self, task: PlannedTask) -> Outcome:
        self.num_now += 1
        self.num_sent += 1
        self.most = max(self.most, self.num_now)
        for _ in range(5):
            await asyncio.sleep(0)
        self.num_now -= 1
        return Outcome("", None, time.perf_counter())


def test_a_closed_loop_has_as_many_tasks_under_way_as_is_set() -> None:
    client, shown = CountingClient(), list[int]()
    samples = asyncio.run(run_closed(client, [TASK] * 10, 3, shown.append))
    assert (client.most, client.num_sent, len(samples)) == (3, 10, 10)
    assert shown == list(range(1, 11))
    assert all(sample.due_s == sample.sent_s for sample in samples)
    assert samples == sorted(samples, key=lambda sample: sample.due_s)


def sample_of(
    latency_s: float, *, due_s: float = 0.0, code: str = "", wait_s: float = 0.1
) -> Sample:
    started_s = None if code else due_s + wait_s
    return Sample(TASK, code, due_s, due_s, started_s, due_s + latency_s)


def test_figures_are_of_the_tasks_that_succeeded_and_failures_are_counted_by_code() -> None:
    samples = [
        sample_of(1.0), sample_of(3.0, due_s=1.0, wait_s=0.5), sample_of(9.0, code="timeout"),
        sample_of(0.1, code="rateLimitExceeded"), sample_of(0.1, code="rateLimitExceeded"),
    ]  # fmt: skip
    result = summarize(Level("closed", 2), samples)
    assert (result.num_requests, result.num_ok) == (5, 2)
    assert result.errors == {"rateLimitExceeded": 2, "timeout": 1}
    assert result.duration_s == 9.0
    assert result.images_per_s == pytest.approx(2 / 9, abs=1e-4)
    assert result.megapixels_per_s == pytest.approx(2 * 0.5 / 9, abs=1e-4)
    assert result.latency is not None
    assert (result.latency.p50, result.latency.longest) == (2.0, 3.0)
    assert result.queue_wait is not None
    assert (result.queue_wait.count, result.queue_wait.p50) == (2, 0.3)
    assert result.ends_s == [1.0, 4.0]


def test_a_level_without_any_success_has_no_latency() -> None:
    result = summarize(Level("open", 1), [sample_of(1.0, code="connectionFailed")])
    assert result.latency is None
    assert result.queue_wait is None
    assert (result.images_per_s, result.groups[0].latency) == (0.0, None)


def test_tasks_are_also_counted_by_size_steps_and_transport() -> None:
    other = replace(sample_of(4.0), task=replace(TASK, transport="async"))
    groups = summarize(Level("closed", 1), [sample_of(1.0), other, other]).groups
    assert [(group.transport, group.num_requests) for group in groups] == [
        ("async", 2),
        ("sync", 1),
    ]
    assert groups[0].latency is not None
    assert groups[0].latency.p50 == 4.0


def test_percentiles_are_interpolated() -> None:
    found = percentiles([float(value) for value in range(1, 102)])
    assert found is not None
    assert (found.p50, found.p90, found.p99, found.count) == (51.0, 91.0, 100.0, 101)
    assert percentiles([]) is None


def test_a_report_is_read_as_it_was_written_and_nothing_else_is_one(tmp_path: Path) -> None:
    from dataclasses import asdict

    from cli.console import write_json

    path = tmp_path / "load.json"
    plan = LoadPlan(mix=MIX, levels=(Level("closed", 1),), num_requests=1, num_warm_up=0)
    report = new_report(plan, "m", "w", [summarize(Level("closed", 1), [sample_of(1.0)])])
    write_json(path, asdict(report))
    assert read_report(path) == report
    path.write_text('{"ratio": 0.5}')
    with pytest.raises(CommandError, match="holds no load run"):
        read_report(path)
    with pytest.raises(CommandError, match="cannot be read"):
        read_report(tmp_path / "none.json")


def test_a_chart_has_a_column_for_each_kind_of_loop(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib (extra `plot`) is not installed")
    from PIL import Image

    widths = []
    for levels in ((Level("closed", 1),), (Level("closed", 1), Level("open", 1))):
        results = [
            summarize(level, [sample_of(1.0), sample_of(1.0, code="timeout")]) for level in levels
        ]
        plan = LoadPlan(mix=MIX, levels=levels, num_requests=1, num_warm_up=0)
        plot_load_chart(tmp_path / "load.png", new_report(plan, "m", "w", results))
        with Image.open(tmp_path / "load.png") as image:
            assert image.format == "PNG"
            widths.append(image.width)
    assert widths[1] > 1.5 * widths[0]
