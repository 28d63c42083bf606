"""The engine with a real worker process: generating, dying, refusing to start."""

import asyncio
import contextlib
import io
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from PIL import Image

from pipeline.generate import generate
from pipeline.load import Pipeline
from pipeline.settings import PipelineSettings
from server.engine.local import LocalEngine
from server.engine.messages import (
    Job,
    JobCancelled,
    JobDone,
    JobEnd,
    JobEvent,
    JobFailed,
    JobImage,
    JobStep,
)
from server.worker.event_sender import EventSender
from tests.system.jobs import variant
from tests.waiting import until

TIMEOUT_S = 90


@asynccontextmanager
async def running_engine(checkpoint: Path, **settings: Any) -> AsyncIterator[LocalEngine]:
    engine = LocalEngine(PipelineSettings(checkpoint=str(checkpoint), num_threads=1, **settings))
    await engine.start()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield engine
    finally:
        await engine.stop()


async def collect(engine: LocalEngine, job: Job) -> list[JobEvent]:
    return [event async for event in engine.submit(job)]


def run_here(pipeline: Pipeline, job: Job) -> list[JobEvent]:
    sent: list[JobEvent] = []
    sender = EventSender(cast(Connection, SimpleNamespace(send=sent.append)))
    for event in generate(pipeline, job.request):
        sender.send_event(job, event)
    sender.close()
    return sent


def images(events: list[JobEvent]) -> list[bytes]:
    return [event.encoded for event in events if isinstance(event, JobImage)]


def worker_pid(engine: LocalEngine) -> int:
    pid = engine.worker_pid
    assert pid is not None
    return pid


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_job_submitted_while_the_worker_loads_is_generated_as_in_this_process(
    tiny_checkpoint: Path, tiny_pipeline: Pipeline, job: Job
) -> None:
    async def scenario() -> tuple[bool, list[JobEvent], bool]:
        async with running_engine(tiny_checkpoint) as engine:
            return engine.status.is_ready, await collect(engine, job), engine.status.is_ready

    was_ready, events, is_ready = asyncio.run(scenario())
    assert (was_ready, is_ready) == (False, True)
    assert isinstance(events[-1], JobDone)
    assert images(events) == images(run_here(tiny_pipeline, job))


def test_a_job_whose_worker_is_killed_is_generated_again_with_the_same_pixels(
    tiny_checkpoint: Path, tiny_pipeline: Pipeline, job: Job
) -> None:
    long = variant(job, num_steps=60)

    async def scenario() -> list[JobEvent]:
        async with running_engine(tiny_checkpoint) as engine:
            events = []
            is_killed = False
            async for event in engine.submit(long):
                events.append(event)
                if isinstance(event, JobStep) and event.step == 3 and not is_killed:
                    is_killed = True
                    os.kill(worker_pid(engine), signal.SIGKILL)
            return events

    events = asyncio.run(scenario())
    assert sum(isinstance(e, JobDone) for e in events) == 1
    assert sum(isinstance(e, JobStep) and e.step == 1 for e in events) == 2
    assert images(events) == images(run_here(tiny_pipeline, long))


def test_an_image_that_was_told_of_is_not_told_again_when_the_job_is_generated_again(
    tiny_checkpoint: Path, tiny_pipeline: Pipeline, job: Job
) -> None:
    two = variant(job, num_steps=30, seeds=(7, 8))

    async def scenario() -> list[JobEvent]:
        async with running_engine(tiny_checkpoint) as engine:
            events = []
            async for event in engine.submit(two):
                events.append(event)
                if isinstance(event, JobImage) and event.image == 0:
                    os.kill(worker_pid(engine), signal.SIGKILL)
            return events

    events = asyncio.run(scenario())
    assert [e.image for e in events if isinstance(e, JobImage)] == [0, 1]
    assert images(events) == images(run_here(tiny_pipeline, two))


def test_a_job_that_nobody_listens_to_is_generated_no_further(
    tiny_checkpoint: Path, job: Job
) -> None:
    endless = variant(job, job_id="endless", num_steps=100, seeds=tuple(range(20)))

    async def scenario() -> None:
        async with running_engine(tiny_checkpoint) as engine:
            events = engine.submit(endless)
            await anext(events)
            await cast(AsyncGenerator[JobEvent], events).aclose()
            await collect(engine, job)  # after it the worker knows of the cancelling
            await until(lambda: is_at_rest(worker_pid(engine)), timeout_s=10, every_s=0.3)

    seconds: list[float] = []

    def is_at_rest(pid: int) -> bool:
        """Return whether it has not computed since the last call."""
        seconds.append(cpu_seconds(pid))
        return len(seconds) > 1 and seconds[-1] == seconds[-2]

    asyncio.run(scenario())


def test_a_job_that_kills_its_worker_twice_ends_in_one_error(
    tiny_checkpoint: Path, job: Job
) -> None:
    async def scenario() -> list[JobEvent]:
        async with running_engine(tiny_checkpoint) as engine:
            events = []
            async for event in engine.submit(variant(job, num_steps=60)):
                events.append(event)
                if isinstance(event, JobStep) and event.step == 2:
                    os.kill(worker_pid(engine), signal.SIGKILL)
            assert engine.figures.num_deaths == 2
            return events

    ends = [e for e in asyncio.run(scenario()) if isinstance(e, JobEnd)]
    assert [(type(e), e.code) for e in ends if isinstance(e, JobFailed)] == [
        (JobFailed, "inferenceError")
    ]
    assert len(ends) == 1


def test_a_cancelled_job_ends_early_and_others_go_on(tiny_checkpoint: Path, job: Job) -> None:
    long, short = variant(job, job_id="long", num_steps=100), replace(job, job_id="short")

    async def scenario() -> tuple[list[JobEvent], list[JobEvent]]:
        async with running_engine(tiny_checkpoint) as engine:
            events: list[JobEvent] = []
            other = asyncio.create_task(collect(engine, short))
            async for event in engine.submit(long):
                events.append(event)
                if isinstance(event, JobStep) and event.step == 2:
                    await engine.cancel("long")
            return events, await other

    cancelled, finished = asyncio.run(scenario())
    assert isinstance(cancelled[-1], JobCancelled)
    assert len(cancelled) < 90
    assert isinstance(finished[-1], JobDone)


def test_a_short_job_is_not_stuck_behind_a_long_one(tiny_checkpoint: Path, job: Job) -> None:
    long, short = variant(job, job_id="long", num_steps=100), replace(job, job_id="short")

    async def scenario() -> list[str]:
        async with running_engine(tiny_checkpoint) as engine:
            order: list[str] = []

            async def run(one: Job) -> None:
                await collect(engine, one)
                order.append(one.job_id)

            await asyncio.gather(run(long), run(short))
            return order

    assert asyncio.run(scenario()) == ["short", "long"]


def test_a_checkpoint_that_cannot_be_loaded_is_told_to_every_job(tmp_path: Path, job: Job) -> None:
    (tmp_path / "config.json").write_text("{}")

    async def scenario() -> tuple[list[JobEvent], str]:
        async with running_engine(tmp_path) as engine:
            first = await collect(engine, job)
            after = await collect(engine, replace(job, job_id="after"))
            return first + after, engine.status.description

    events, description = asyncio.run(scenario())
    assert [type(e) for e in events if isinstance(e, JobEnd)] == [JobFailed, JobFailed]
    assert {event.code for event in events if isinstance(event, JobFailed)} == {
        "unsupportedCheckpoint"
    }
    assert str(tmp_path) in description


def test_a_worker_that_dies_again_and_again_while_loading_is_given_up(
    tiny_checkpoint: Path, job: Job
) -> None:
    async def scenario() -> list[JobEvent]:
        async with running_engine(tiny_checkpoint) as engine:
            generating = asyncio.create_task(collect(engine, job))
            killed: set[int] = set()

            def kill_each_worker() -> bool:
                """Kill a worker that was not killed yet; return whether the job has ended."""
                pid = engine.worker_pid
                if pid is not None and pid not in killed:
                    killed.add(pid)
                    os.kill(pid, signal.SIGKILL)
                return generating.done()

            await until(kill_each_worker)
            return await generating

    (failed,) = [e for e in asyncio.run(scenario()) if isinstance(e, JobEnd)]
    assert isinstance(failed, JobFailed)
    assert "3 times while loading" in failed.message


def test_a_stopped_engine_leaves_no_process(tiny_checkpoint: Path, job: Job) -> None:
    async def scenario() -> int:
        async with running_engine(tiny_checkpoint) as engine:
            await collect(engine, job)
            return worker_pid(engine)

    assert not is_alive(asyncio.run(scenario()))


def test_a_worker_of_four_ranks_generates_the_same_and_survives_the_death_of_one(
    tiny_checkpoint: Path, tiny_pipeline: Pipeline, job: Job
) -> None:
    settings = PipelineSettings(
        checkpoint=str(tiny_checkpoint), num_threads=1, cfg_parallel_size=2, tensor_parallel_size=2
    )
    longer = variant(job, num_steps=6, seeds=(7, 8))
    expected = images(run_here(tiny_pipeline, longer))

    async def scenario() -> list[bytes]:
        engine = LocalEngine(settings)
        await engine.start()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                first, second = await asyncio.gather(
                    collect(engine, longer), collect(engine, replace(longer, job_id="other"))
                )
                assert images(first) == images(second)
                victim = child_pids(worker_pid(engine))[0]
                events: list[JobEvent] = []
                async for event in engine.submit(longer):
                    events.append(event)
                    if len(events) == 2:
                        os.kill(victim, signal.SIGKILL)
                assert isinstance(events[-1], JobDone)
                return images(first) + images(events)[-2:]
        finally:
            await engine.stop()

    for ours, theirs in zip(asyncio.run(scenario()), expected * 2, strict=True):
        away = np.abs(np.array(open_png(ours)).astype(int) - np.array(open_png(theirs)))
        assert away.max() <= 1


def open_png(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def child_pids(pid: int) -> list[int]:
    """Return the ranks that a worker has started, not multiprocessing's own helper."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            command = (stat.parent / "cmdline").read_bytes()
            if int(fields[1]) == pid and b"spawn_main" in command:
                children.append(int(stat.parent.name))
    return sorted(children)
