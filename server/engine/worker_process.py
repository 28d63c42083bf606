"""One life of the worker process: its pipes, and the threads that block on them.

Pipes block, so one thread reads and one writes; the event loop gets whole messages.
"""

import asyncio
import contextlib
import importlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from pipeline.settings import PipelineSettings
from server.engine.messages import Control, Job, WorkerEvent
from server.observing_settings import LoggingSettings
from server.process import configure_process, ignore_stop_signals, stop_signals_blocked

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 10.0


class WorkerProcess:
    """A child process that generates. Control has its own pipe: no job can stand before it."""

    def __init__(
        self,
        settings: PipelineSettings,
        on_event: Callable[[WorkerEvent], None],
        on_death: Callable[["WorkerProcess"], None],
        logging_settings: LoggingSettings,
    ) -> None:
        """Both functions are called in the event loop; the second once, at the end."""
        self._on_event, self._on_death = on_event, on_death
        self._loop = asyncio.get_running_loop()
        context = multiprocessing.get_context("spawn")
        self._jobs, their_jobs = context.Pipe()
        self._control, their_control = context.Pipe()
        self._theirs = (their_jobs, their_control)
        self._process: BaseProcess = context.Process(
            target=_run_worker,
            args=(*self._theirs, settings, logging_settings),
            name="hyimage-worker",
        )
        self._reader = threading.Thread(target=self._read, name="worker-read", daemon=True)
        self._starting: asyncio.Future[None] | None = None
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="worker-send")

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return self._process.exitcode

    async def start(self) -> None:
        """Start the process; a start that is under way cannot be called off."""
        self._starting = asyncio.ensure_future(asyncio.to_thread(_start, self._process))
        await asyncio.shield(self._starting)
        for end in self._theirs:
            end.close()  # so that our ends see EOF when the worker dies
        self._reader.start()

    async def send(self, message: Job | Control) -> None:
        """Send a message after those before it; to a dead worker it is lost."""
        pipe = self._jobs if isinstance(message, Job) else self._control
        try:
            await self._loop.run_in_executor(self._sender, pipe.send, message)
        except (OSError, RuntimeError):
            log.info("job %s: the worker is gone; the next one gets it", message.job_id)

    def kill(self) -> None:
        """Kill the process at once, even a stopped one."""
        if self._process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)

    async def stop(self, *, is_loading: bool) -> None:
        """End the worker: close its pipe, then kill it. It ignores SIGTERM."""
        if self._starting is None:
            return
        await self._starting
        self._control.close()  # an idle or generating worker sees this and ends
        self._sender.shutdown(wait=False, cancel_futures=True)
        if is_loading:
            self._process.kill()  # it sees its pipe only when it has loaded
        await asyncio.to_thread(_end_process, self._process)
        if self._reader.ident is not None:
            await asyncio.to_thread(self._reader.join, STOP_TIMEOUT_S)
        self._jobs.close()

    def _read(self) -> None:
        """Pass on events until the worker's pipe ends. Runs in its own thread."""
        try:
            while True:
                event: WorkerEvent = self._jobs.recv()
                self._loop.call_soon_threadsafe(self._on_event, event)
        except (EOFError, OSError):
            self._process.join(STOP_TIMEOUT_S)
            self._sender.shutdown(wait=False)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._on_death, self)
        except RuntimeError:
            log.debug("the event loop is closed; the worker's last events are lost")


def _run_worker(
    jobs: Connection,
    control: Connection,
    settings: PipelineSettings,
    logging_settings: LoggingSettings,
) -> None:
    """Run in the child: torch is imported there and nowhere else, hence by name."""
    ignore_stop_signals()
    configure_process(logging_settings.level, logging_settings.format)
    importlib.import_module("server.worker.main").run(jobs, control, settings)


def _start(process: BaseProcess) -> None:
    with stop_signals_blocked():
        process.start()


def _end_process(process: BaseProcess) -> None:
    process.join(STOP_TIMEOUT_S)
    if process.is_alive():
        process.kill()
        process.join(STOP_TIMEOUT_S)
