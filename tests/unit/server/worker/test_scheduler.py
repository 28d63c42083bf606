"""The step scheduler: turns, cancels, places, memory; its log lines carry the request's id."""

import logging
import multiprocessing
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from pipeline.load import Pipeline
from pipeline.request import Event, ImageRequest, StepDone
from server.engine.messages import (
    Cancel,
    Job,
    JobCancelled,
    JobDone,
    JobEnd,
    JobFailed,
    JobQueued,
    JobStarted,
    JobStep,
    ShowPreviews,
)
from server.process import add_request_id
from server.worker.memory import JobNeeds, MemoryBudget
from server.worker.scheduler import StepScheduler

TIMEOUT_S = 30.0
ROOMY = MemoryBudget(1000, lambda request: JobNeeds(held=1, step=1))

Run = Callable[[Pipeline, ImageRequest, Callable[[], bool]], Generator[Event, None, None]]


@dataclass
class Server:
    """The server's ends of a worker's pipes."""

    jobs: Connection
    control: Connection

    def receive(self) -> Any:
        """Return the worker's next message."""
        assert self.jobs.poll(TIMEOUT_S)
        return self.jobs.recv()

    def receive_until_ends(self, count: int) -> list[Any]:
        """Return the worker's messages up to the end of so many jobs."""
        messages: list[Any] = []
        while sum(isinstance(message, JobEnd) for message in messages) < count:
            messages.append(self.receive())
        return messages


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Return a function that starts a scheduler around a way of generating."""
    threads: list[tuple[threading.Thread, list[Connection], list[Connection]]] = []

    def new(run: Run, max_active: int = 2, budget: MemoryBudget = ROOMY) -> Server:
        ours, theirs = multiprocessing.Pipe()
        control, their_control = multiprocessing.Pipe()
        pipeline = cast(
            Pipeline, SimpleNamespace(transformer=SimpleNamespace(devices=()), preview_map=None)
        )

        def work() -> None:
            with pytest.raises(EOFError):
                StepScheduler(pipeline, (theirs, their_control), max_active, budget, run=run).run()

        thread = threading.Thread(target=work)
        thread.start()
        threads.append((thread, [control, ours], [theirs, their_control]))
        return Server(ours, control)

    yield new
    for thread, our_ends, their_ends in threads:
        for end in our_ends:
            end.close()
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()
        for end in their_ends:
            end.close()


def job(name: str, steps: int = 3, **changes: Any) -> Job:
    request = ImageRequest(prompt=name, num_steps=steps, guidance=1.0, seeds=(1,))
    return Job(
        job_id=name,
        request=request,
        image_format="PNG",
        quality=90,
        request_id=f"request-{name}",
        **changes,
    )


def step_by_step(
    pipeline: Pipeline, request: ImageRequest, wants_preview: Callable[[], bool]
) -> Generator[Event, None, None]:
    for step in range(request.num_steps):
        yield StepDone(image=0, step=step + 1, num_steps=request.num_steps)


def test_a_bug_ends_each_job_and_its_line_carries_the_id_of_its_request(
    start: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Generator[Event, None, None]:
        yield from ()
        raise ZeroDivisionError

    caplog.set_level(logging.INFO)
    caplog.handler.addFilter(add_request_id)
    server = start(broken)
    for name in ("one", "two"):
        server.jobs.send(job(name))
        failed = server.receive_until_ends(1)[-1]
        assert isinstance(failed, JobFailed)
        assert (failed.job_id, failed.code) == (name, "inferenceError")
    caplog.handler.removeFilter(add_request_id)
    said = {line.getMessage(): line.__dict__["request_id"] for line in caplog.records}
    assert said == {"job one failed": "request-one", "job two failed": "request-two"}


def test_active_jobs_take_turns_and_others_wait_with_their_place(
    start: Callable[..., Server],
) -> None:
    gate = threading.Event()

    def gated(*arguments: Any) -> Generator[Event, None, None]:
        gate.wait(TIMEOUT_S)
        yield from step_by_step(*arguments)

    server = start(gated)
    for name in ("first", "second", "third"):
        server.jobs.send(job(name))
    gate.set()
    messages = server.receive_until_ends(3)
    steps = [m.job_id for m in messages if isinstance(m, JobStep)]
    assert steps[:4] in (
        ["first", "second", "first", "second"],
        ["first", "first", "second", "first"],  # the first began before the others had come
    )
    before_third = steps[: steps.index("third")]
    assert 3 in (before_third.count("first"), before_third.count("second"))
    places = [m.position for m in messages if isinstance(m, JobQueued) and m.job_id == "third"]
    assert places == sorted(places, reverse=True)
    assert places[-1] == 1


def test_a_cancel_that_overtakes_its_job_still_ends_it(start: Callable[..., Server]) -> None:
    entered, gate = threading.Event(), threading.Event()

    def gated(*arguments: Any) -> Generator[Event, None, None]:
        entered.set()
        gate.wait(TIMEOUT_S)
        yield from step_by_step(*arguments)

    server = start(gated, max_active=1)
    server.jobs.send(job("running"))
    entered.wait(TIMEOUT_S)
    for name in ("a", "b", "c"):
        server.jobs.send(job(name))
    server.control.send(Cancel(job_id="c"))  # readable at once; the job's pipe holds three
    gate.set()
    ends = {m.job_id: type(m) for m in server.receive_until_ends(4) if isinstance(m, JobEnd)}
    assert ends == {"running": JobDone, "a": JobDone, "b": JobDone, "c": JobCancelled}


def test_a_cancelled_job_stops_after_its_step_and_its_generator_is_closed(
    start: Callable[..., Server],
) -> None:
    closed = threading.Event()

    def endless(*_: Any) -> Generator[Event, None, None]:
        try:
            for step in range(1_000_000):
                yield StepDone(image=0, step=step, num_steps=1_000_000)
        finally:
            closed.set()

    server = start(endless)
    server.jobs.send(job("long"))
    while not isinstance(server.receive(), JobStep):
        pass
    server.control.send(Cancel(job_id="long"))
    assert isinstance(server.receive_until_ends(1)[-1], JobCancelled)
    assert closed.wait(TIMEOUT_S)
    assert not server.jobs.poll(0.2)


def test_a_job_waits_for_memory_and_none_passes_it(start: Callable[..., Server]) -> None:
    needs = {"big": JobNeeds(held=60, step=10), "bigger": JobNeeds(held=90, step=10)}
    budget = MemoryBudget(100, lambda request: needs.get(request.prompt, JobNeeds(1, 1)))
    gate = threading.Event()

    def gated(*arguments: Any) -> Generator[Event, None, None]:
        gate.wait(TIMEOUT_S)
        yield from step_by_step(*arguments)

    server = start(gated, max_active=3, budget=budget)
    for name in ("big", "bigger", "small"):
        server.jobs.send(job(name))
    gate.set()
    messages = server.receive_until_ends(3)
    order = [(type(m).__name__, m.job_id) for m in messages if isinstance(m, JobStarted | JobDone)]
    assert order[:3] == [("JobStarted", "big"), ("JobDone", "big"), ("JobStarted", "bigger")]


@pytest.mark.parametrize("num_failures", [1, 2])
def test_a_job_without_memory_runs_once_more_alone_and_others_are_not_harmed(
    start: Callable[..., Server], num_failures: int
) -> None:
    active: set[str] = set()
    beside: list[set[str]] = []
    failures = iter(range(num_failures))

    def hungry(
        pipeline: Pipeline, request: ImageRequest, wants_preview: Callable[[], bool]
    ) -> Generator[Event, None, None]:
        active.add(request.prompt)
        try:
            yield StepDone(image=0, step=1, num_steps=request.num_steps)
            if request.prompt == "hungry":
                beside.append(set(active))
                if next(failures, None) is not None:
                    raise torch.OutOfMemoryError("CUDA out of memory")
            yield StepDone(image=0, step=2, num_steps=request.num_steps)
        finally:
            active.discard(request.prompt)

    server = start(hungry)
    for name in ("other", "hungry", "later"):
        server.jobs.send(job(name))
    ends = {m.job_id: m for m in server.receive_until_ends(3) if isinstance(m, JobEnd)}
    assert isinstance(ends["other"], JobDone)
    assert isinstance(ends["later"], JobDone)
    assert beside[-1] == {"hungry"}
    if num_failures == 1:
        assert isinstance(ends["hungry"], JobDone)
    else:
        failed = ends["hungry"]
        assert isinstance(failed, JobFailed)
        assert failed.code == "outOfMemory"
        assert "smaller size" in failed.message


def test_a_job_that_runs_alone_has_no_neighbour(start: Callable[..., Server]) -> None:
    server = start(step_by_step, max_active=3)
    server.jobs.send(job("before", steps=50))
    server.jobs.send(job("suspect", runs_alone=True))
    server.jobs.send(job("after"))
    messages = [m for m in server.receive_until_ends(3) if isinstance(m, JobStarted | JobDone)]
    names = [m.job_id for m in messages]
    place = names.index("suspect")
    assert names[place : place + 2] == ["suspect", "suspect"]


def test_previews_are_wanted_from_the_message_on(start: Callable[..., Server]) -> None:
    wanted: list[bool] = []
    seen = threading.Event()

    def watching(
        pipeline: Pipeline, request: ImageRequest, wants_preview: Callable[[], bool]
    ) -> Generator[Event, None, None]:
        while not wanted or not wanted[-1]:
            wanted.append(wants_preview())
            seen.set()
            yield StepDone(image=0, step=1, num_steps=1)

    server = start(watching)
    server.jobs.send(job("watched"))
    seen.wait(TIMEOUT_S)
    server.control.send(ShowPreviews(job_id="watched"))
    assert isinstance(server.receive_until_ends(1)[-1], JobDone)
    assert wanted[0] is False
    assert wanted[-1] is True
