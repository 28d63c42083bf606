"""The engine of one machine: a worker process, watched and restarted.

Pipes block, so one thread reads and one writes; the event loop gets whole messages.
"""

import asyncio
import contextlib
import importlib
import logging
import multiprocessing
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from pipeline.settings import PipelineSettings
from server.engine.messages import (
    Cancel,
    Job,
    JobEnd,
    JobEvent,
    JobFailed,
    JobImage,
    WorkerEvent,
    WorkerFailed,
    WorkerReady,
)
from server.engine.protocol import EngineStatus
from server.process import configure_process, ignore_stop_signals, stop_signals_blocked

log = logging.getLogger(__name__)

MAX_RUNS = 2  # a job whose worker died is run once more; a second death is the job's own fault
MAX_FAILED_STARTS = 3  # a worker that dies while loading is started this often in a row
RESTART_DELAY_S = 1.0
STOP_TIMEOUT_S = 10.0


@dataclass(slots=True)
class _Running:
    job: Job
    events: asyncio.Queue[JobEvent]
    num_runs: int = 1
    delivered: set[int] = field(default_factory=set)

    def pass_on(self, event: JobEvent) -> None:
        """Pass on an event; drop an image that was passed on before its worker died."""
        if isinstance(event, JobImage):
            if event.image in self.delivered:
                return
            self.delivered.add(event.image)
        self.events.put_nowait(event)


@dataclass(slots=True)
class _Worker:
    """One life of the worker process. Control has its own pipe: no job can stand before it."""

    process: BaseProcess
    jobs: Connection
    control: Connection
    reader: threading.Thread
    loop: asyncio.AbstractEventLoop
    sender: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="worker-send")
    )


class LocalEngine:
    """Implements `server.engine.protocol.Engine` with a child process."""

    def __init__(
        self, settings: PipelineSettings, on_failed: Callable[[str], None] = lambda message: None
    ) -> None:
        """`on_failed` is called once, with the reason, if no worker can ever generate."""
        self._settings = settings
        self._on_failed = on_failed
        self._running: dict[str, _Running] = {}
        self._worker: _Worker | None = None
        self._status = EngineStatus(is_ready=False, description="the worker has not been started")
        self._failure: tuple[str, str] | None = None  # code and message, once there is no hope
        self._is_stopping = False
        self._num_failed_starts = 0
        self._restart: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()

    @property
    def status(self) -> EngineStatus:
        return self._status

    async def start(self) -> None:
        """Start the worker; `status` is ready once it has loaded its checkpoint."""
        self._status = EngineStatus(is_ready=False, description="the worker is loading")
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        control, their_control = context.Pipe()
        process = context.Process(
            target=_run_worker, args=(theirs, their_control, self._settings), name="hyimage-worker"
        )
        await asyncio.to_thread(_start_process, process)
        for end in (theirs, their_control):
            end.close()  # so that our ends see EOF when the worker dies
        reader = threading.Thread(target=self._read, name="worker-read", daemon=True)
        self._worker = _Worker(process, ours, control, reader, asyncio.get_running_loop())
        reader.start()

    async def stop(self) -> None:
        """End the worker: close its pipe, then kill it. It ignores SIGTERM."""
        self._is_stopping = True
        if self._restart is not None:
            self._restart.cancel()
        if (worker := self._worker) is None:
            return
        worker.control.close()  # an idle or generating worker sees this and ends
        worker.sender.shutdown(wait=False, cancel_futures=True)
        if not self._status.is_ready:
            worker.process.kill()  # it sees its pipe only when it has loaded
        await asyncio.to_thread(_end_process, worker.process)
        await asyncio.to_thread(worker.reader.join, STOP_TIMEOUT_S)
        worker.jobs.close()
        self._fail_all("serviceUnavailable", "the server was stopped before the task was finished")

    async def submit(self, job: Job) -> AsyncIterator[JobEvent]:
        """Yield the events of a job; a job submitted while the worker loads waits for it."""
        if self._failure is not None:
            code, message = self._failure
            yield JobFailed(job_id=job.job_id, code=code, message=message)
            return
        running = _Running(job, asyncio.Queue())
        self._running[job.job_id] = running
        has_ended = False
        try:
            if self._status.is_ready:
                await self._send_job(job)
            while not has_ended:
                event = await running.events.get()
                has_ended = isinstance(event, JobEnd)
                yield event
        finally:
            del self._running[job.job_id]
            if not has_ended:  # its consumer is gone
                self._spawn(self._send_cancel(job.job_id))

    async def cancel(self, job_id: str) -> None:
        """Stop a job after its current step."""
        if job_id in self._running:
            await self._send_cancel(job_id)

    async def _send_job(self, job: Job) -> None:
        if (worker := self._worker) is not None:
            await self._send(worker, worker.jobs, job)

    async def _send_cancel(self, job_id: str) -> None:
        if (worker := self._worker) is not None:
            await self._send(worker, worker.control, Cancel(job_id=job_id))

    async def _send(self, worker: _Worker, pipe: Connection, message: Job | Cancel) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(worker.sender, pipe.send, message)
        except (OSError, RuntimeError):
            log.info("job %s: the worker is gone; the next one gets it", message.job_id)

    def _read(self) -> None:
        """Pass on events until the worker's pipe ends. Runs in its own thread."""
        worker = self._worker
        assert worker is not None
        loop = worker.loop
        try:
            while True:
                event: WorkerEvent = worker.jobs.recv()
                loop.call_soon_threadsafe(self._on_event, event)
        except (EOFError, OSError):
            worker.process.join(STOP_TIMEOUT_S)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._on_death, worker)
        except RuntimeError:
            log.debug("the event loop is closed; the worker's last events are lost")

    def _on_event(self, event: WorkerEvent) -> None:
        if isinstance(event, WorkerReady):
            self._num_failed_starts = 0
            self._status = EngineStatus(is_ready=True, description=event.description)
            log.info("worker ready: %s", event.description)
            for running in self._running.values():
                if running.num_runs <= MAX_RUNS:
                    self._spawn(self._send_job(running.job))
        elif isinstance(event, WorkerFailed):
            self._give_up(event.code, event.message)  # the same files would fail the same way
        elif event.job_id in self._running:
            self._running[event.job_id].pass_on(event)

    def _on_death(self, worker: _Worker) -> None:
        worker.sender.shutdown(wait=False)
        if self._is_stopping or self._failure is not None:
            return
        code = worker.process.exitcode
        if self._status.is_ready:
            self._blame_running_jobs()
        else:
            self._num_failed_starts += 1
        if self._num_failed_starts >= MAX_FAILED_STARTS:
            self._give_up(
                "workerFailed",
                f"the worker died {MAX_FAILED_STARTS} times while loading, last with exit code "
                f"{code}; -9 usually means that memory ran out",
            )
            return
        log.error("the worker died with exit code %s; restarting it", code)
        self._status = EngineStatus(is_ready=False, description="the worker died; restarting it")
        self._restart = self._spawn(self._start_again())

    def _blame_running_jobs(self) -> None:
        for running in self._running.values():
            running.num_runs += 1
            if running.num_runs > MAX_RUNS:
                message = "the worker died twice while generating this task; try a smaller one"
                self._end(running, "inferenceError", message)

    def _give_up(self, code: str, message: str) -> None:
        log.error("the worker cannot generate: %s", message)
        self._failure = (code, message)
        self._status = EngineStatus(is_ready=False, description=message)
        self._fail_all(code, message)
        self._on_failed(message)

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


def _run_worker(jobs: Connection, control: Connection, settings: PipelineSettings) -> None:
    """Run in the child: torch is imported there and nowhere else, hence by name."""
    ignore_stop_signals()
    configure_process()
    importlib.import_module("server.worker.main").run(jobs, control, settings)


def _start_process(process: BaseProcess) -> None:
    with stop_signals_blocked():
        process.start()


def _end_process(process: BaseProcess) -> None:
    process.join(STOP_TIMEOUT_S)
    if process.is_alive():
        process.kill()
        process.join(STOP_TIMEOUT_S)
