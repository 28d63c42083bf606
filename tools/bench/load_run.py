"""Closed and open loops of load against one server.

Open loops measure from the time at which a task was due, not from when it was sent: a client that
falls behind, or a server that makes it wait, would otherwise hide the wait (coordinated omission).
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from tools.api_client import call, fetch_status, open_client
from tools.bench.load_client import LoadClient, Outcome
from tools.bench.load_plan import Level, LoadPlan, Mix, PlannedTask, plan_tasks, task_body
from tools.progress import Report, ignore

WARM_UP = "warm-up"
_ANY_UUID = "00000000-0000-4000-8000-000000000000"  # of dry runs, which take none


class Sender(Protocol):
    """What sends one task and waits for its end."""

    async def send(self, task: PlannedTask) -> Outcome: ...


@dataclass(frozen=True, slots=True)
class Sample:
    """One task and its times, in seconds from the start of its level.

    `due_s` is when it was to be sent, `sent_s` when it was, `started_s` when the server began it.
    """

    task: PlannedTask
    code: str
    due_s: float
    sent_s: float
    started_s: float | None
    ended_s: float

    @property
    def is_ok(self) -> bool:
        return not self.code

    @property
    def latency_s(self) -> float:
        return self.ended_s - self.due_s

    @property
    def queue_wait_s(self) -> float | None:
        """Seconds from when it was due until the server began it."""
        return None if self.started_s is None else max(0.0, self.started_s - self.due_s)


def check_server(url: str, key: str | None, mix: Mix) -> tuple[str, str]:
    """Return the model that a server serves, and the worker's description.

    Every combination of size and steps is checked by a dry run, before any load.

    Raises:
        CommandError: the server cannot be reached, wants a key, or refuses a task of the mix.
    """
    with open_client(url, key) as client:
        status = fetch_status(client)
        model = status["model"]
        sent = [
            task_body(
                PlannedTask(
                    prompt=mix.prompts[0], image_seed=mix.seed, width_px=width_px,
                    height_px=height_px, num_steps=steps, transport="sync",
                ),
                model, mix.guidance, _ANY_UUID,
            )
            for width_px, height_px in dict.fromkeys(mix.sizes)
            for steps in dict.fromkeys(mix.steps)
        ]  # fmt: skip
        for body in sent:  # one at a time: an answer to several hides which was refused
            call(client, "POST", "/v1?dryRun=1", [body])
    return model, status["worker"]["description"]


def run_load(
    client_of: Callable[[], LoadClient],
    plan: LoadPlan,
    on_level: Callable[[Level, list[Sample]], None],
    report: Report = ignore,
) -> None:
    """Run all levels of a plan after its warm-up; `on_level` gets the samples of each."""
    asyncio.run(_run_levels(client_of, plan, on_level, report))


async def _run_levels(
    client_of: Callable[[], LoadClient],
    plan: LoadPlan,
    on_level: Callable[[Level, list[Sample]], None],
    report: Report,
) -> None:
    client = client_of()
    try:
        warm_up = plan_tasks(plan.mix, Level("closed", 1), plan.num_warm_up)
        await run_closed(client, warm_up, 1, lambda done: report(WARM_UP, done, len(warm_up)))
        for level in plan.levels:
            on_level(level, await run_level(client, plan, level, report))
            await client.cancel_unfinished()
    finally:
        await client.close()


async def run_level(
    client: Sender, plan: LoadPlan, level: Level, report: Report = ignore
) -> list[Sample]:
    """Return the samples of one level, in the order in which they were due."""
    tasks = plan_tasks(plan.mix, level, plan.num_requests)

    def show(num_done: int) -> None:
        report(level.name, num_done, len(tasks))

    show(0)
    if level.kind == "closed":
        return await run_closed(client, tasks, int(level.load), show)
    return await run_open(client, tasks, show)


async def run_closed(
    client: Sender,
    tasks: Sequence[PlannedTask],
    concurrency: int,
    show: Callable[[int], None],
) -> list[Sample]:
    """Send tasks so that always as many are under way; each is due when it is sent."""
    start = time.perf_counter()
    samples: list[Sample] = []
    pending = iter(tasks)

    async def send_all() -> None:
        for task in pending:
            sent_s = time.perf_counter() - start
            outcome = await client.send(task)
            samples.append(_sample(replace(task, due_s=sent_s), start, sent_s, outcome))
            show(len(samples))

    await asyncio.gather(*(send_all() for _ in range(concurrency)))
    return sorted(samples, key=lambda sample: sample.due_s)


async def run_open(
    client: Sender, tasks: Sequence[PlannedTask], show: Callable[[int], None]
) -> list[Sample]:
    """Send every task when it is due, however many are under way."""
    start = time.perf_counter()
    num_done = 0

    async def send(task: PlannedTask) -> Sample:
        nonlocal num_done
        await asyncio.sleep(start + task.due_s - time.perf_counter())
        sent_s = time.perf_counter() - start
        outcome = await client.send(task)
        num_done += 1
        show(num_done)
        return _sample(task, start, sent_s, outcome)

    return list(await asyncio.gather(*map(send, tasks)))


def _sample(task: PlannedTask, start: float, sent_s: float, outcome: Outcome) -> Sample:
    started_s = None if outcome.started_at is None else outcome.started_at - start
    return Sample(task, outcome.code, task.due_s, sent_s, started_s, outcome.ended_at - start)
