"""One worker process: receive jobs, draw them a step at a time, report, obey cancel."""

import logging
import signal
from collections import deque
from collections.abc import Generator, Iterator
from multiprocessing.connection import Connection, wait

from model.errors import ModelError
from pipeline.generate import generate
from pipeline.load import Pipeline, load_pipeline
from server.engine.messages import (
    Cancel,
    Job,
    JobCancelled,
    JobEvent,
    JobFailed,
    WorkerEvent,
    WorkerFailed,
    WorkerReady,
)
from server.import_guard import check_imports
from server.settings import WorkerSettings
from server.worker.ranks import (
    Advance,
    Begin,
    Drop,
    Followers,
    Order,
    settings_of_rank,
    started_mesh,
)

log = logging.getLogger(__name__)

TINY = 10**9  # parameters; the real checkpoint has 83 times as many


def run(jobs: Connection, control: Connection, settings: WorkerSettings) -> None:
    """Load the checkpoint and draw until the server closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to handle
    check_imports()
    with started_mesh(settings) as (mesh, followers):
        try:
            pipeline = load_pipeline(settings_of_rank(settings, 0), mesh=mesh)
            if followers is not None:
                followers.wait_until_loaded()
        except ModelError as e:
            jobs.send(WorkerFailed(code=e.code, message=str(e)))
            return
        jobs.send(WorkerReady(description=describe(pipeline, settings)))
        try:
            StepScheduler(pipeline, jobs, control, settings.max_active_jobs, followers).run()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            log.info("the server, or a rank, is gone; the worker ends")


def describe(pipeline: Pipeline, settings: WorkerSettings) -> str:
    """Return one line on what this worker generates with."""
    num_parameters = sum(p.numel() for p in pipeline.transformer.parameters())
    ranks = f", rank 0 of {settings.num_ranks}" if settings.num_ranks > 1 else ""
    weights = "" if pipeline.scheme is None else f", {pipeline.scheme} weights"
    what = "" if num_parameters > TINY else "the tiny stand-in, not HunyuanImage-3.0 itself: "
    return (
        f"{what}{settings.checkpoint} ({num_parameters / 1e6:.1f} M parameters, {settings.dtype}"
        f"{weights}, {settings.device}{ranks})"
    )


class StepScheduler:
    """Interleaves the steps of several jobs, so that a short one is not stuck behind a long one."""

    def __init__(
        self,
        pipeline: Pipeline,
        jobs: Connection,
        control: Connection,
        max_active: int,
        followers: Followers | None = None,
    ) -> None:
        self._parts = pipeline
        self._jobs = jobs
        self._control = control
        self._max_active = max_active
        self._followers = followers
        self._waiting: deque[Job] = deque()
        self._active: deque[tuple[str, Iterator[JobEvent]]] = deque()

    def run(self) -> None:
        """Generate for ever.

        Raises:
            EOFError: the server closed its end of a pipe.
        """
        while True:
            self._receive()
            while self._waiting and len(self._active) < self._max_active:
                job = self._waiting.popleft()
                self._order(Begin(job))
                self._active.append((job.job_id, generate(self._parts, job)))
            if self._active:
                self._advance(*self._active.popleft())

    def _receive(self) -> None:
        """Take what has arrived; wait for it only when there is nothing to generate."""
        is_idle = not (self._active or self._waiting)
        arrived = wait([self._jobs, self._control], None if is_idle else 0)
        for source in (s for s in (self._jobs, self._control) if s in arrived):
            message = source.recv()
            if isinstance(message, Job):
                self._waiting.append(message)
            elif isinstance(message, Cancel):
                self._cancel(message.job_id)

    def _advance(self, job_id: str, events: Iterator[JobEvent]) -> None:
        """Generate one step of a job and put it at the end of the line."""
        self._order(Advance(job_id))
        try:
            event = next(events, None)
        except ModelError as e:
            event, events = JobFailed(job_id=job_id, code=e.code, message=str(e)), iter(())
        except Exception:
            log.exception("job %s failed", job_id)
            if self._followers is not None and not self._followers.are_alive:
                raise EOFError("a rank is gone") from None  # a whole new worker generates it again
            self._order(Drop(job_id))
            message = "generating failed inside the model; the server's log has the details"
            event = JobFailed(job_id=job_id, code="inferenceError", message=message)
            events = iter(())
        if event is None:
            self._order(Drop(job_id))
            return
        self._send(event)
        self._active.append((job_id, events))

    def _cancel(self, job_id: str) -> None:
        known = any(i == job_id for i, _ in self._active) or any(
            job.job_id == job_id for job in self._waiting
        )
        self._waiting = deque(job for job in self._waiting if job.job_id != job_id)
        for active_id, events in self._active:
            if active_id == job_id and isinstance(events, Generator):
                events.close()
        self._active = deque(pair for pair in self._active if pair[0] != job_id)
        self._order(Drop(job_id))
        if known:
            self._send(JobCancelled(job_id=job_id))

    def _order(self, order: Order) -> None:
        """Let the other ranks do the same."""
        if self._followers is not None:
            self._followers.tell(order)

    def _send(self, event: WorkerEvent) -> None:
        self._jobs.send(event)
