"""The worker process: runs jobs step by step, reports their events, obeys cancels."""

import logging
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

import torch

from model.errors import ModelError
from pipeline.device import JobStreams
from pipeline.generate import generate
from pipeline.load import Pipeline, load_pipeline
from pipeline.ranks import (
    Advance,
    Begin,
    Command,
    Drop,
    Followers,
    settings_of_rank,
    started_mesh,
)
from pipeline.request import Event
from pipeline.settings import PipelineSettings
from server.engine.messages import (
    Cancel,
    Job,
    JobCancelled,
    JobDone,
    JobFailed,
    WorkerFailed,
    WorkerReady,
)
from server.import_guard import check_imports
from server.process import request_id
from server.worker.event_sender import EventSender

log = logging.getLogger(__name__)

TINY = 10**9  # parameters; the real checkpoint has 83 times as many


def run(jobs: Connection, control: Connection, settings: PipelineSettings) -> None:
    """Load the checkpoint and run jobs until the server closes the pipe or dies."""
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
            scheduler = StepScheduler(
                pipeline,
                jobs,
                control,
                settings.max_active_jobs,
                followers,
                pipeline.transformer.devices,
            )
            scheduler.run()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            log.info("the server, or a rank, is gone; the worker ends")


def describe(pipeline: Pipeline, settings: PipelineSettings) -> str:
    """Return one line about the checkpoint, precision and device of this worker."""
    num_parameters = sum(p.numel() for p in pipeline.transformer.parameters())
    ranks = f", rank 0 of {settings.num_ranks}" if settings.num_ranks > 1 else ""
    weights = "" if pipeline.scheme is None else f", {pipeline.scheme} weights"
    what = "" if num_parameters > TINY else "the tiny stand-in, not HunyuanImage-3.0 itself: "
    return (
        f"{what}{settings.checkpoint} ({num_parameters / 1e6:.1f} M parameters, "
        f"{settings.weights_dtype}{weights}, {settings.device}{ranks})"
    )


@dataclass(frozen=True, slots=True)
class _Active:
    """A job that is being generated."""

    job: Job
    events: Generator[Event, None, None]
    streams: JobStreams


class StepScheduler:
    """Interleaves the steps of several jobs, so that a short one does not wait for a long one."""

    def __init__(
        self,
        pipeline: Pipeline,
        jobs: Connection,
        control: Connection,
        max_active: int,
        followers: Followers | None = None,
        devices: Sequence[torch.device] = (),
    ) -> None:
        """`devices` are those that the layers are spread over."""
        self._pipeline = pipeline
        self._devices = devices
        self._jobs = jobs
        self._events = EventSender(jobs)
        self._control = control
        self._max_active = max_active
        self._followers = followers
        self._waiting: deque[Job] = deque()
        self._active: deque[_Active] = deque()

    def run(self) -> None:
        """Run jobs for ever.

        Raises:
            EOFError: the server closed its end of a pipe.
        """
        while True:
            self._receive()
            while self._waiting and len(self._active) < self._max_active:
                job = self._waiting.popleft()
                self._command(Begin(job.job_id, job.request))
                streams = JobStreams(self._devices)
                self._active.append(_Active(job, generate(self._pipeline, job.request), streams))
            if self._active:
                self._advance(self._active.popleft())

    def _receive(self) -> None:
        """Take the messages that have arrived; wait for one only if there is nothing to run."""
        is_idle = not (self._active or self._waiting)
        arrived = wait([self._jobs, self._control], None if is_idle else 0)
        for source in (s for s in (self._jobs, self._control) if s in arrived):
            message = source.recv()
            if isinstance(message, Job):
                self._waiting.append(message)
            elif isinstance(message, Cancel):
                self._cancel(message.job_id)

    def _advance(self, active: "_Active") -> None:
        """Run a job to its next event, then queue it again; end it if it is done."""
        job = active.job
        request_id.set(job.request_id or "-")
        self._command(Advance(job.job_id))
        try:
            with active.streams.current():
                event = next(active.events, None)
        except ModelError as e:
            self._end(JobFailed(job_id=job.job_id, code=e.code, message=str(e)))
            return
        except Exception:
            log.exception("job %s failed", job.job_id)
            if self._followers is not None:
                # The other ranks may stand inside a collective of this step; the next job's would
                # meet it. A whole new worker runs the jobs again.
                self._followers.abandon()
            reason = "generation failed inside the model; the server's log has the details"
            self._end(JobFailed(job_id=job.job_id, code="inferenceError", message=reason))
            return
        if event is None:
            self._end(JobDone(job_id=job.job_id))
            return
        self._events.send_event(job, event)
        self._active.append(active)

    def _cancel(self, job_id: str) -> None:
        jobs = [*self._waiting, *(active.job for active in self._active)]
        self._waiting = deque(job for job in self._waiting if job.job_id != job_id)
        for active in self._active:
            if active.job.job_id == job_id:
                active.events.close()
        self._active = deque(a for a in self._active if a.job.job_id != job_id)
        if any(job.job_id == job_id for job in jobs):
            self._end(JobCancelled(job_id=job_id))

    def _end(self, end: JobDone | JobFailed | JobCancelled) -> None:
        """Report the end of a job, which runs on no rank any more."""
        self._command(Drop(end.job_id))
        self._events.send(end)

    def _command(self, command: Command) -> None:
        """Send a command to the other ranks, if there are any."""
        if self._followers is not None:
            self._followers.send(command)
