"""The engine of a cluster: runs a job on an engine replica, and on another if that one dies.

A job depends on nothing but itself, so a replica that dies costs time and nothing else.
"""

import asyncio
import logging
from collections.abc import AsyncIterator

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import (
    DeploymentUnavailableError,
    RayServeException,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from server.engine.messages import Job, JobCancelled, JobEnd, JobEvent, JobFailed, JobImage
from server.engine.protocol import EngineFigures, EngineStatus

log = logging.getLogger(__name__)

APPLICATION, ENGINES = "hyimage", "Engine"
MAX_RUNS = 4  # a job during which as many replicas died is taken to be the cause
STATUS_EVERY_S = 2.0


class ClusterEngine:
    """Implements `server.engine.protocol.Engine` with engine replicas.

    Jobs that no replica has taken wait in this process: Ray Serve counts them to decide how many
    replicas to run, and if this process dies their tasks are still in the task store.
    """

    def __init__(self, engines: DeploymentHandle) -> None:
        self._engines = engines.options(stream=True)
        self._self = ray.get_runtime_context().current_actor  # engines check whether it is alive
        self._streams: dict[str, DeploymentResponseGenerator] = {}
        self._status = EngineStatus(is_ready=False, description="no engine has been found yet")
        self._watching: asyncio.Task[None] | None = None
        self._is_stopping = False

    @property
    def status(self) -> EngineStatus:
        return self._status

    @property
    def figures(self) -> EngineFigures:
        """None: each replica is a process elsewhere."""
        return EngineFigures()

    async def start(self) -> None:
        """Begin to watch the replicas; they were started by Ray Serve."""
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def stop(self) -> None:
        """Cancel the jobs of this process; the replicas run on."""
        self._is_stopping = True
        if self._watching is not None:
            self._watching.cancel()
        for stream in self._streams.values():
            stream.cancel()

    async def submit(self, job: Job) -> AsyncIterator[JobEvent]:
        """Yield the events of a job; each image once, however many replicas begin the job."""
        delivered: set[int] = set()
        for _ in range(MAX_RUNS):
            stream = self._streams[job.job_id] = self._engines.submit.remote(job, self._self)
            try:
                async for event in stream:
                    if isinstance(event, JobImage) and event.image in delivered:
                        continue
                    if isinstance(event, JobImage):
                        delivered.add(event.image)
                    yield event
                    if isinstance(event, JobEnd):
                        return
                log.warning("job %s: its engine ended; another one starts it again", job.job_id)
            except RequestCancelledError:
                stopped = "the server was stopped before the task was finished"
                yield (
                    _failed(job, "serviceUnavailable", stopped)
                    if self._is_stopping
                    else JobCancelled(job_id=job.job_id)
                )
                return
            except DeploymentUnavailableError:
                yield _failed(job, "serviceUnavailable", "no engine can be started; see the log")
                return
            except RayTaskError:
                log.exception("job %s failed in its engine", job.job_id)
                yield _failed(job, "inferenceError", "the engine failed; its log has the details")
                return
            except RayError as e:
                log.warning(
                    "job %s: its engine is gone (%s); another one starts it again",
                    job.job_id,
                    type(e).__name__,
                )
            finally:
                del self._streams[job.job_id]
        message = f"{MAX_RUNS} engines died while generating this task; try a smaller one"
        yield _failed(job, "inferenceError", message)

    async def cancel(self, job_id: str) -> None:
        """Stop a job after its current step."""
        if (stream := self._streams.get(job_id)) is not None:
            stream.cancel()

    async def show_previews(self, job_id: str) -> None:
        """Do nothing: a running job's replica cannot be reached beside its stream.

        Tasks with `hunyuan.previews` have them from the first step.
        """

    async def _watch(self) -> None:
        reported = ""
        while True:
            self._status, trouble = await asyncio.to_thread(_count_engines)
            if trouble != reported:
                reported = trouble
                log.log(logging.ERROR if trouble else logging.INFO, trouble or "engines run again")
            await asyncio.sleep(STATUS_EVERY_S)


def _failed(job: Job, code: str, message: str) -> JobFailed:
    return JobFailed(job_id=job.job_id, code=code, message=message)


def _count_engines() -> tuple[EngineStatus, str]:
    """Return how many engines Ray Serve reports as loaded, and if none, why."""
    try:
        engines = serve.status().applications[APPLICATION].deployments[ENGINES]
    except (RayError, RayServeException, KeyError) as e:
        return EngineStatus(is_ready=False, description="Ray Serve does not answer"), repr(e)
    running = engines.replica_states.get("RUNNING", 0)
    others = sum(engines.replica_states.values()) - running
    description = f"{running} engines, {others} starting or stopping"
    trouble = "" if running else f"no engine runs: {engines.message}"
    return EngineStatus(is_ready=running > 0, description=description), trouble
