"""The engine's watch over its worker: queue, turns, previews, cancels, a worker that stalls."""

import asyncio
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cache.plan import NO_REUSE, CachePlan
from model.loading.fingerprint import fingerprint
from pipeline.load import Pipeline
from pipeline.preview import PreviewMap, save_preview_map
from server.engine.local import LocalEngine
from server.engine.messages import (
    Job,
    JobCancelled,
    JobDone,
    JobEvent,
    JobQueued,
    JobStarted,
    JobStep,
    JobText,
)
from tests.conftest import SMALL_CONFIG
from tests.system.jobs import variant
from tests.system.test_local_engine import (
    collect,
    images,
    is_alive,
    open_png,
    run_here,
    running_engine,
    worker_pid,
)
from tests.waiting import until
from training.random_checkpoint import write_random_checkpoint


def test_a_short_job_beside_a_long_one_takes_every_other_step(
    tiny_checkpoint: Path, job: Job
) -> None:
    long = variant(job, job_id="long", num_steps=100)
    short = variant(job, job_id="short", num_steps=4)
    order: list[str] = []

    async def note(engine: LocalEngine, one: Job) -> None:
        async for event in engine.submit(one):
            if isinstance(event, JobStep):
                order.append(one.job_id)

    async def scenario() -> None:
        async with running_engine(tiny_checkpoint) as engine:
            running = asyncio.create_task(note(engine, long))
            await until(lambda: len(order) >= 5, every_s=0.01)
            await note(engine, short)
            await engine.cancel("long")
            await running

    asyncio.run(scenario())
    first, last = order.index("short"), len(order) - order[::-1].index("short")
    assert order.count("short") == 4
    assert order[first:last].count("long") <= 4


def test_jobs_beyond_those_that_run_wait_and_get_their_place(
    tiny_checkpoint: Path, job: Job
) -> None:
    async def scenario() -> list[list[int]]:
        async with running_engine(tiny_checkpoint, max_active_jobs=1) as engine:
            await collect(engine, job)
            jobs = [replace(job, job_id=f"job{n}") for n in range(4)]
            got = await asyncio.gather(*(collect(engine, each) for each in jobs))
            assert all(isinstance(events[-1], JobDone) for events in got)
            assert all(sum(isinstance(e, JobStarted) for e in events) == 1 for events in got)
            return [[e.position for e in events if isinstance(e, JobQueued)] for events in got]

    places = asyncio.run(scenario())
    assert all(each == sorted(each, reverse=True) for each in places)
    assert places[3][-1] == 1
    assert max(places[3]) >= 2


def test_a_worker_that_stands_still_is_replaced_and_its_job_generated_again(
    tiny_checkpoint: Path, tiny_pipeline: Pipeline, job: Job
) -> None:
    long = variant(job, num_steps=30)

    async def scenario() -> tuple[list[JobEvent], bool]:
        async with running_engine(tiny_checkpoint, stall_timeout_s=2) as engine:
            events: list[JobEvent] = []
            stopped = 0
            async for event in engine.submit(long):
                events.append(event)
                if isinstance(event, JobStep) and event.step == 3 and not stopped:
                    stopped = worker_pid(engine)
                    os.kill(stopped, signal.SIGSTOP)
            return events, is_alive(stopped)

    events, is_still_there = asyncio.run(scenario())
    assert isinstance(events[-1], JobDone)
    assert not is_still_there
    assert images(events) == images(run_here(tiny_pipeline, long))


def test_previews_come_when_they_are_wanted_and_change_no_pixel(
    tiny_checkpoint: Path, tiny_pipeline: Pipeline, job: Job, tmp_path: Path
) -> None:
    long = variant(job, num_steps=20)
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    channels = tiny_pipeline.transformer.config.vae.latent_channels
    save_preview_map(
        checkpoint,
        PreviewMap(
            fingerprint=fingerprint(checkpoint),
            patch=2,
            weight_PC=torch.randn(12, channels),
            bias_P=torch.full((12,), 0.5),
            r2=0.0,
            n=1,
        ),
    )

    async def scenario() -> list[JobEvent]:
        async with running_engine(checkpoint) as engine:
            events = []
            async for event in engine.submit(long):
                events.append(event)
                if isinstance(event, JobStep) and event.step == 5:
                    await engine.show_previews("job")
            return events

    events = asyncio.run(scenario())
    previews = [e.preview for e in events if isinstance(e, JobStep)]
    assert previews[:5] == [None] * 5
    assert all(previews[15:])
    sizes = {open_png(preview).size for preview in previews if preview}
    assert all(max(size) <= 256 for size in sizes)
    assert images(events) == images(run_here(tiny_pipeline, long))


def test_a_job_cancelled_before_its_worker_has_it_ends_at_once(
    tiny_checkpoint: Path, job: Job
) -> None:
    async def scenario() -> list[JobEvent]:
        async with running_engine(tiny_checkpoint) as engine:
            events: list[JobEvent] = []
            async for event in engine.submit(job):
                events.append(event)
                await engine.cancel("job")
            assert not engine.status.is_ready
            return events

    assert isinstance(asyncio.run(scenario())[-1], JobCancelled)


def test_a_mesh_of_two_ranks_stops_a_cancelled_job_and_goes_on(
    tiny_checkpoint: Path, tiny_pipeline: Pipeline, job: Job
) -> None:
    long = variant(job, job_id="long", num_steps=100)

    async def scenario() -> tuple[list[JobEvent], list[JobEvent]]:
        async with running_engine(tiny_checkpoint, cfg_parallel_size=2) as engine:
            events: list[JobEvent] = []
            async for event in engine.submit(long):
                events.append(event)
                if isinstance(event, JobStep) and event.step == 3:
                    await engine.cancel("long")
            return events, await collect(engine, job)

    cancelled, after = asyncio.run(scenario())
    assert isinstance(cancelled[-1], JobCancelled)
    assert sum(isinstance(event, JobStep) for event in cancelled) < 30
    assert isinstance(after[-1], JobDone)
    (ours,), (theirs,) = images(after), images(run_here(tiny_pipeline, job))
    away = np.abs(np.array(open_png(ours)).astype(int) - np.array(open_png(theirs)))
    assert away.max() <= 1


def test_twenty_mixed_jobs_get_the_pixels_that_each_has_alone(
    tiny_checkpoint: Path, tiny_pipeline: Pipeline, job: Job
) -> None:
    schedulers = ("Default", "Euler", "DPM++ 2M", "Heun", "UniPC")
    jobs = [
        replace(
            variant(
                job,
                job_id=f"job{number}",
                num_steps=2 + number % 5,
                seeds=(number,),
                width_px=(256, 384, 128)[number % 3],
                height_px=(256, 128, 384)[number % 3],
                guidance=(1.0, 5.0)[number % 2],
                scheduler=schedulers[number % 5],
                cache=CachePlan(start=0, end=7, tea_distance=0.8) if number % 4 == 0 else NO_REUSE,
            ),
            owner=f"owner{number % 3}",
            has_previews=number % 2 == 0,
        )
        for number in range(20)
    ]

    async def scenario() -> list[list[JobEvent]]:
        async with running_engine(tiny_checkpoint, max_active_jobs=4) as engine:
            return await asyncio.gather(*(collect(engine, each) for each in jobs))

    together = asyncio.run(scenario())
    for each, events in zip(jobs, together, strict=True):
        assert images(events) == images(run_here(tiny_pipeline, each)), each.job_id


def test_a_job_is_cancelled_while_its_text_is_written(tmp_path: Path, job: Job) -> None:
    write_random_checkpoint(tmp_path, SMALL_CONFIG, generation={"sequence_template": "instruct"})
    written = variant(job, job_id="written", rewrite="think")

    async def scenario() -> tuple[list[JobEvent], list[JobEvent]]:
        async with running_engine(tmp_path, max_rewrite_tokens=12800) as engine:
            events: list[JobEvent] = []
            async for event in engine.submit(written):
                events.append(event)
                if isinstance(event, JobText):
                    await engine.cancel("written")
            return events, await collect(engine, job)

    cancelled, after = asyncio.run(scenario())
    assert isinstance(cancelled[-1], JobCancelled)
    assert not any(isinstance(event, JobStep) for event in cancelled)
    assert isinstance(after[-1], JobDone)
