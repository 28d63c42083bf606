"""The engine on this machine: one worker process, watched and restarted.

Pipes block, so a thread reads and a thread writes; the event loop only sees finished messages.
"""

import asyncio
import importlib
import logging
import multiprocessing
import threading
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from server.engine.protocol import EngineStatus
from server.messages import (
    Cancel,
    Job,
    JobCancelled,
    JobDone,
    JobEvent,
    JobFailed,
    WorkerEvent,
    WorkerFailed,
    WorkerReady,
)
from server.settings import WorkerSettings

log = logging.getLogger(__name__)

MAX_RUNS = 2  # a job whose worker died is run once more; a second death is the job's own fault
RESTART_DELAY_S = 1.0
STOP_TIMEOUT_S = 10.0


@dataclass(slots=True)
class _Running:
    job: Job
    events: asyncio.Queue[JobEvent]
    num_runs: int = 1


@dataclass(slots=True)
class _Worker:
    """One life of the worker process. Control has its own pipe: no job can stand before it."""

    process: BaseProcess
    jobs: Connection
    control: Connection
    sender: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="worker-send")
    )


class LocalEngine:
    """Implements `server.engine.protocol.Engine` with a child process."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._running: dict[str, _Running] = {}
        self._worker: _Worker | None = None
        self._status = EngineStatus(is_ready=False, description="the worker has not been started")
        self._is_stopping = False
        self._restart: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()

    @property
    def status(self) -> EngineStatus:
        return self._status

    async def start(self) -> None:
        """Start the worker; `status` tells when it has loaded its checkpoint."""
        self._status = EngineStatus(is_ready=False, description="the worker is loading")
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        control, their_control = context.Pipe()
        process = context.Process(
            target=_run_worker, args=(theirs, their_control, self._settings), name="hyimage-worker"
        )
        await asyncio.to_thread(process.start)
        for end in (theirs, their_control):
            end.close()  # so that our ends see EOF when the worker dies
        self._worker = _Worker(process, ours, control)
        loop = asyncio.get_running_loop()
        reader = threading.Thread(
            target=self._read, args=(self._worker, loop), name="worker-read", daemon=True
        )
        reader.start()

    async def stop(self) -> None:
        """End the worker: ask, then terminate, then kill."""
        self._is_stopping = True
        if self._restart is not None:
            self._restart.cancel()
        if (worker := self._worker) is None:
            return
        worker.jobs.close()
        worker.control.close()
        worker.sender.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(_end_process, worker.process)
        self._fail_all("serviceUnavailable", "the server was stopped before the task was finished")

    async def submit(self, job: Job) -> AsyncIterator[JobEvent]:
        """Yield the events of a job; a job submitted while the worker loads waits for it."""
        running = _Running(job, asyncio.Queue())
        self._running[job.job_id] = running
        try:
            if self._status.is_ready:
                await self._send(job)
            while True:
                event = await running.events.get()
                yield event
                if isinstance(event, JobDone | JobFailed | JobCancelled):
                    return
        finally:
            del self._running[job.job_id]

    async def cancel(self, job_id: str) -> None:
        """Stop a job after its current step."""
        if job_id in self._running and self._worker is not None:
            worker = self._worker
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(worker.sender, worker.control.send, Cancel(job_id=job_id))

    async def _send(self, job: Job) -> None:
        worker = self._worker
        if worker is None:
            return
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(worker.sender, worker.jobs.send, job)
        except (OSError, RuntimeError):
            log.info("job %s could not be sent; it goes to the next worker", job.job_id)

    def _read(self, worker: _Worker, loop: asyncio.AbstractEventLoop) -> None:
        """Pass on events until the worker's pipe ends. Runs in its own thread."""
        try:
            while True:
                event: WorkerEvent = worker.jobs.recv()
                loop.call_soon_threadsafe(self._on_event, event)
        except (EOFError, OSError):
            worker.process.join(STOP_TIMEOUT_S)
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._on_death, worker)

    def _on_event(self, event: WorkerEvent) -> None:
        if isinstance(event, WorkerReady):
            self._status = EngineStatus(is_ready=True, description=event.description)
            log.info("worker ready: %s", event.description)
            for running in list(self._running.values()):
                self._spawn(self._send(running.job))
        elif isinstance(event, WorkerFailed):
            self._status = EngineStatus(is_ready=False, description=event.message)
            self._is_stopping = True  # the same files would fail the same way
            self._fail_all(event.code, event.message)
        elif event.job_id in self._running:
            self._running[event.job_id].events.put_nowait(event)

    def _on_death(self, worker: _Worker) -> None:
        if self._is_stopping or worker is not self._worker:
            return
        code = worker.process.exitcode
        log.error("the worker died with exit code %s; restarting it", code)
        self._status = EngineStatus(is_ready=False, description="the worker died; restarting it")
        worker.sender.shutdown(wait=False)
        for running in self._running.values():
            running.num_runs += 1
            if running.num_runs > MAX_RUNS:
                message = "the worker died twice while drawing this task; try a smaller one"
                self._end(running, "inferenceError", message)
        self._restart = self._spawn(self._start_again())

    async def _start_again(self) -> None:
        await asyncio.sleep(RESTART_DELAY_S)
        await self.start()

    def _fail_all(self, code: str, message: str) -> None:
        for running in self._running.values():
            self._end(running, code, message)

    def _end(self, running: _Running, code: str, message: str) -> None:
        running.events.put_nowait(JobFailed(job_id=running.job.job_id, code=code, message=message))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


def _run_worker(jobs: Connection, control: Connection, settings: WorkerSettings) -> None:
    """Run in the child: torch is imported there and nowhere else, hence by name."""
    importlib.import_module("server.worker.main").run(jobs, control, settings)


def _end_process(process: BaseProcess) -> None:
    process.join(STOP_TIMEOUT_S)
    for end in (process.terminate, process.kill):
        if not process.is_alive():
            return
        end()
        process.join(STOP_TIMEOUT_S)
