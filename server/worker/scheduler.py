"""The step scheduler: interleaves the steps of several jobs, so that a short one never waits long.

Jobs wait in a fair queue until a slot and memory for them are free. Between two steps it takes new
jobs and cancels, so a cancelled job stops after its current step.
"""

import gc
import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from model.errors import ModelError
from pipeline.device import JobStreams
from pipeline.generate import generate
from pipeline.load import Pipeline
from pipeline.ranks import Advance, Begin, Command, Drop, Followers
from pipeline.request import Event, ImageRequest
from server.engine.messages import (
    Cancel,
    Job,
    JobCancelled,
    JobDone,
    JobEnd,
    JobFailed,
    JobQueued,
    JobStarted,
    ShowPreviews,
)
from server.process import request_id
from server.worker.event_sender import EventSender
from server.worker.fair_queue import FairQueue
from server.worker.memory import MemoryBudget
from server.worker.memory_report import MemoryReporter
from server.worker.pacing import Pacer

log = logging.getLogger(__name__)

Generate = Callable[[Pipeline, ImageRequest, Callable[[], bool]], Generator[Event, None, None]]


@dataclass(slots=True)
class _Active:
    """A job that is being generated."""

    job: Job
    events: Generator[Event, None, None]
    streams: JobStreams


class StepScheduler:
    """Runs the jobs of one worker."""

    def __init__(
        self,
        pipeline: Pipeline,
        pipes: tuple[Connection, Connection],
        max_active: int,
        budget: MemoryBudget,
        followers: Followers | None = None,
        run: Generate = generate,
    ) -> None:
        """`pipes` bring jobs and control; events leave by the first."""
        self._pipeline = pipeline
        self._devices = pipeline.transformer.devices
        self._jobs, self._control = pipes
        self._events = EventSender(self._jobs)
        self._max_active = max_active
        self._budget = budget
        self._followers = followers
        self._run = run
        self._pacer = Pacer(self._devices)
        self._memory = MemoryReporter(self._devices)
        self._queue = FairQueue(job_cost)
        self._active: deque[_Active] = deque()
        self._positions: dict[str, int] = {}
        self._previews: set[str] = set()  # jobs that want them
        self._lonely: deque[Job] = deque()  # waiting jobs that must run without others

    def run(self) -> None:
        """Run jobs for ever.

        Raises:
            EOFError: the server closed its end of a pipe.
        """
        self._report_memory()
        while True:
            self._receive()
            self._start_jobs()
            if self._active:
                self._advance(self._active.popleft())

    # --- messages ---

    def _receive(self) -> None:
        """Take the messages that have arrived; wait for one only if there is nothing to run."""
        is_idle = not (self._active or self._queue or self._lonely)
        wait([self._jobs, self._control], None if is_idle else 0)
        # Control is read first and applied last: the job that it names was sent before it, on the
        # other pipe.
        control = list(_drain(self._control))
        jobs = list(_drain(self._jobs))
        for job in jobs:
            if job.has_previews:
                self._previews.add(job.job_id)
            (self._lonely.append if job.runs_alone else self._queue.push)(job)
        for message in control:
            if isinstance(message, Cancel):
                self._cancel(message.job_id)
            elif isinstance(message, ShowPreviews):
                self._previews.add(message.job_id)
        if jobs or control:
            self._report_positions()

    def _report_positions(self) -> None:
        """Report the place of each job that waits, where it has changed."""
        waiting = enumerate((*self._lonely, *self._queue), start=1)
        positions = {job.job_id: place for place, job in waiting}
        for job_id, position in positions.items():
            if self._positions.get(job_id) != position:
                self._events.send(JobQueued(job_id=job_id, position=position))
        self._positions = positions

    def _cancel(self, job_id: str) -> None:
        is_known = self._queue.remove(job_id)
        for job in [job for job in self._lonely if job.job_id == job_id]:
            self._lonely.remove(job)
            is_known = True
        for active in [a for a in self._active if a.job.job_id == job_id]:
            active.events.close()
            self._active.remove(active)
            is_known = True
        if is_known:
            self._end(JobCancelled(job_id=job_id))

    # --- jobs ---

    def _start_jobs(self) -> None:
        """Start the jobs that have a slot and the memory, in the order of the queue."""
        if self._lonely and not self._active:
            self._start(self._lonely.popleft())
        if self._lonely or any(active.job.runs_alone for active in self._active):
            return
        while len(self._active) < self._max_active:
            job = self._queue.peek()
            if job is None:
                return
            active = [each.job.request for each in self._active]
            if not self._budget.fits(active, job.request):
                return  # nor does a smaller one pass it: it would wait for ever
            self._start(self._queue.pop())

    def _start(self, job: Job) -> None:
        self._command(Begin(job.job_id, job.request))
        events = self._run(self._pipeline, job.request, lambda: job.job_id in self._previews)
        self._active.append(_Active(job, events, JobStreams(self._devices)))
        can_preview = self._pipeline.preview_map is not None
        self._events.send(JobStarted(job_id=job.job_id, has_previews=can_preview))
        self._report_positions()

    def _advance(self, active: _Active) -> None:
        """Run a job to its next event, then queue it again; end it if it is done."""
        job = active.job
        request_id.set(job.request_id or "-")
        self._command(Advance(job.job_id))
        started = time.perf_counter()
        try:
            with active.streams.current():
                event = next(active.events, None)
                self._pacer.wait()
        except ModelError as e:
            self._end(JobFailed(job_id=job.job_id, code=e.code, message=str(e)))
            return
        except Exception as e:
            if not is_out_of_memory(e) or self._followers is not None:
                log.exception("job %s failed", job.job_id)
                self._fail(job)
                return
        else:
            if event is None:
                self._end(JobDone(job_id=job.job_id))
                return
            self._events.send_event(job, event, time.perf_counter() - started)
            self._report_memory()
            self._active.append(active)
            return
        # Outside of the handler: its traceback would hold the job's tensors.
        active.events.close()
        self._free_and_retry(job)

    def _report_memory(self) -> None:
        if (memory := self._memory.read_if_due()) is not None:
            self._events.send(memory)

    def _fail(self, job: Job) -> None:
        """End a job that met a bug."""
        if self._followers is not None:
            # The other ranks may stand inside a collective of this step; the next job's would
            # meet it. A whole new worker runs the jobs again.
            self._followers.abandon()
        reason = "generation failed inside the model; the server's log has the details"
        self._end(JobFailed(job_id=job.job_id, code="inferenceError", message=reason))

    def _free_and_retry(self, job: Job) -> None:
        """Free what can be freed; run the job once more, alone, or end it."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not job.runs_alone:
            log.warning("job %s ran out of memory; it runs again when no other does", job.job_id)
            self._lonely.append(replace(job, runs_alone=True))
            self._report_positions()
            return
        log.error("job %s ran out of memory although no other job ran", job.job_id)
        reason = (
            "The images need more memory than the device has, even alone; ask for a smaller size "
            "or fewer images, or let the operator set device_memory_gb, batch_size or quantization."
        )
        self._end(JobFailed(job_id=job.job_id, code="outOfMemory", message=reason))

    def _end(self, end: JobEnd) -> None:
        """Report the end of a job, which runs on no rank any more."""
        self._previews.discard(end.job_id)
        self._command(Drop(end.job_id))
        self._events.send(end)

    def _command(self, command: Command) -> None:
        """Send a command to the other ranks, if there are any."""
        if self._followers is not None:
            self._followers.send(command)


def job_cost(job: Job) -> float:
    """Return the work of a job in rows of megapixels, which take about equally long."""
    request = job.request
    pixels = (request.width_px or 1024) * (request.height_px or 1024)
    rows = 2 if request.guidance > 1 else 1
    return request.num_steps * len(request.seeds) * rows * pixels / 1e6


def is_out_of_memory(error: Exception) -> bool:
    """Return whether torch could not allocate; on a CPU that is a RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _drain(pipe: Connection) -> Iterator[Any]:
    while pipe.poll():
        yield pipe.recv()
