"""The engine of one machine: a worker process, watched and replaced.

A job whose worker died runs again, alone; if its worker dies again, the job is taken to be the
cause. A worker that has been silent for too long is killed, and treated as one that died.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

from pipeline.settings import PipelineSettings
from server.background import Background
from server.engine.messages import (
    Cancel,
    Job,
    JobCancelled,
    JobEnd,
    JobEvent,
    JobFailed,
    JobImage,
    JobQueued,
    JobStarted,
    JobStep,
    ShowPreviews,
    WorkerEvent,
    WorkerFailed,
    WorkerMemory,
    WorkerReady,
)
from server.engine.process_memory import tree_bytes
from server.engine.protocol import EngineFigures, EngineStatus
from server.engine.restarts import MAX_FAILED_STARTS, RestartPolicy, StallWatch
from server.engine.worker_process import WorkerProcess
from server.observing_settings import LoggingSettings

log = logging.getLogger(__name__)

MAX_RUNS = 2  # a job whose worker died is run once more; a second death is the job's own fault
LOOK_EVERY_S = 1.0


@dataclass(slots=True)
class _Running:
    job: Job
    events: asyncio.Queue[JobEvent] = field(default_factory=asyncio.Queue)
    num_runs: int = 1
    is_sent: bool = False
    is_started: bool = False
    is_cancelled: bool = False
    delivered: set[int] = field(default_factory=set)

    def pass_on(self, event: JobEvent) -> None:
        """Pass on an event; drop an image that was passed on before its worker died."""
        if isinstance(event, JobImage):
            if event.image in self.delivered:
                return
            self.delivered.add(event.image)
        self.is_started |= isinstance(event, JobStarted)
        self.events.put_nowait(event)

    def fail(self, code: str, message: str) -> None:
        self.events.put_nowait(JobFailed(job_id=self.job.job_id, code=code, message=message))

    def end_cancelled(self) -> None:
        self.events.put_nowait(JobCancelled(job_id=self.job.job_id))


class LocalEngine:
    """Implements `server.engine.protocol.Engine` with a child process."""

    def __init__(
        self,
        settings: PipelineSettings,
        on_failed: Callable[[str], None] = lambda message: None,
        logging_settings: LoggingSettings | None = None,
    ) -> None:
        """`on_failed` is called once, with the reason, if no worker can ever generate."""
        self._settings = settings
        self._on_failed = on_failed
        self._logging = logging_settings or LoggingSettings()
        self._running: dict[str, _Running] = {}
        self._worker: WorkerProcess | None = None
        self._status = EngineStatus(is_ready=False, description="the worker has not been started")
        self._figures = EngineFigures()
        self._failure: tuple[str, str] | None = None  # code and message, once there is no hope
        self._is_stopping = False
        self._policy = RestartPolicy()
        self._stall = StallWatch(settings.stall_timeout_s)
        self._tending: list[asyncio.Task[None]] = []  # the watch, and a restart that waits
        self._background = Background()

    @property
    def status(self) -> EngineStatus:
        return self._status

    @property
    def figures(self) -> EngineFigures:
        pid = self.worker_pid
        return replace(self._figures, resident_bytes=None if pid is None else tree_bytes(pid))

    @property
    def worker_pid(self) -> int | None:
        """The process id of the present worker."""
        return None if self._worker is None else self._worker.pid

    async def start(self) -> None:
        """Start the worker; `status` is ready once it has loaded its checkpoint."""
        await self._start_worker()
        self._tending.append(self._background.spawn(self._watch()))

    async def stop(self) -> None:
        """End the worker; jobs that still run fail."""
        self._is_stopping = True
        for task in self._tending:
            task.cancel()
        if self._worker is None:
            return
        await self._worker.stop(is_loading=not self._status.is_ready)
        for running in self._running.values():
            running.fail("serviceUnavailable", "the server was stopped before the task finished")

    async def submit(self, job: Job) -> AsyncIterator[JobEvent]:
        """Yield the events of a job; a job submitted while the worker loads waits for it."""
        if self._failure is not None:
            code, message = self._failure
            yield JobFailed(job_id=job.job_id, code=code, message=message)
            return
        if not self._running:
            self._stall.restart(time.monotonic())
        running = self._running[job.job_id] = _Running(job)
        has_ended = False
        try:
            if self._status.is_ready:
                await self._send_job(running)
            else:
                running.pass_on(JobQueued(job_id=job.job_id, position=len(self._running)))
            while not has_ended:
                event = await running.events.get()
                has_ended = isinstance(event, JobEnd)
                yield event
        finally:
            del self._running[job.job_id]
            if not has_ended:  # its consumer is gone
                self._background.spawn(self._send(Cancel(job_id=job.job_id)))

    async def cancel(self, job_id: str) -> None:
        """Stop a job after its current step."""
        running = self._running.get(job_id)
        if running is None or running.is_cancelled:
            return
        running.is_cancelled = True
        if running.is_sent:
            await self._send(Cancel(job_id=job_id))  # a worker that dies ends it, too
        else:
            running.end_cancelled()

    async def show_previews(self, job_id: str) -> None:
        """Send previews of a job from its next step on; unknown ids are ignored."""
        running = self._running.get(job_id)
        if running is None or running.job.has_previews:
            return
        running.job = replace(running.job, has_previews=True)
        await self._send(ShowPreviews(job_id=job_id))

    async def _send_job(self, running: _Running) -> None:
        if not running.is_cancelled:
            running.is_sent = True
            await self._send(running.job)

    async def _send(self, message: Job | Cancel | ShowPreviews) -> None:
        if self._worker is not None and self._status.is_ready:
            await self._worker.send(message)

    # --- the worker ---

    async def _start_worker(self) -> None:
        self._status = EngineStatus(is_ready=False, description="the worker is loading")
        self._worker = WorkerProcess(self._settings, self._on_event, self._on_death, self._logging)
        await self._worker.start()

    async def _restart_worker(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        await self._start_worker()

    async def _watch(self) -> None:
        """Kill a worker that has jobs and has been silent for too long."""
        while True:
            await asyncio.sleep(min(LOOK_EVERY_S, self._stall.limit_s / 4))
            is_busy = self._status.is_ready and bool(self._running)
            if is_busy and self._stall.is_stalled(time.monotonic()) and self._worker is not None:
                log.error("the worker was silent for %.0f s; replacing it", self._stall.limit_s)
                self._status = EngineStatus(
                    is_ready=False, description="the worker stalled; replacing it"
                )
                self._worker.kill()

    def _on_event(self, event: WorkerEvent) -> None:
        self._stall.note_event(time.monotonic(), is_step=isinstance(event, JobStep))
        if isinstance(event, WorkerReady):
            self._policy.note_ready()
            self._status = EngineStatus(is_ready=True, description=event.description)
            log.info("worker ready: %s", event.description)
            for running in self._running.values():
                if running.num_runs <= MAX_RUNS:
                    self._background.spawn(self._send_job(running))
        elif isinstance(event, WorkerFailed):
            self._give_up(event.code, event.message)  # the same files would fail the same way
        elif isinstance(event, WorkerMemory):
            self._figures = replace(self._figures, memory=event.readings)
        elif event.job_id in self._running:
            self._running[event.job_id].pass_on(event)

    def _on_death(self, worker: WorkerProcess) -> None:
        if self._is_stopping or self._failure is not None:
            return
        was_ready = any(running.is_started for running in self._running.values())
        was_ready |= self._status.is_ready
        self._stall.forget()
        self._figures = EngineFigures(self._figures.num_deaths + 1)
        delay_s = self._policy.note_death(time.monotonic(), was_ready=was_ready)
        self._take_back_jobs()
        if delay_s is None:
            self._give_up(
                "workerFailed",
                f"the worker died {MAX_FAILED_STARTS} times while loading, last with exit code "
                f"{worker.exit_code}; -9 usually means that memory ran out",
            )
            return
        reason = (
            f"the worker died with exit code {worker.exit_code}, {self._policy.num_deaths} times "
            f"within ten minutes; it is started again in {delay_s:.0f} s"
        )
        log.error("%s", reason)
        self._status = EngineStatus(is_ready=False, description=reason)
        self._tending[1:] = [self._background.spawn(self._restart_worker(delay_s))]

    def _take_back_jobs(self) -> None:
        """Let the jobs of a dead worker wait for the next; those that ran are suspects."""
        for place, running in enumerate(self._running.values(), start=1):
            running.is_sent = False
            if running.is_cancelled:
                running.end_cancelled()
                continue
            if running.is_started:
                running.is_started = False
                running.num_runs += 1
                running.job = replace(running.job, runs_alone=True)
            if running.num_runs > MAX_RUNS:
                message = "the worker died twice while generating this task; try a smaller one"
                running.fail("inferenceError", message)
            else:
                running.pass_on(JobQueued(job_id=running.job.job_id, position=place))

    def _give_up(self, code: str, message: str) -> None:
        log.error("the worker cannot generate: %s", message)
        self._failure = (code, message)
        self._status = EngineStatus(is_ready=False, description=message)
        for running in self._running.values():
            running.fail(code, message)
        self._on_failed(message)
