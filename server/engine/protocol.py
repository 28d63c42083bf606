"""What the server asks of whatever generates: take a job, report on it, stop it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from server.engine.messages import Job, JobEvent


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """Whether images can be generated now, and by what; or what stands in the way."""

    is_ready: bool
    description: str


class Engine(Protocol):
    """Generates jobs somewhere else than in this process."""

    async def start(self) -> None:
        """Start loading; returns before the engine is ready."""
        ...

    async def stop(self) -> None:
        """End every process; jobs that still run end in JobFailed."""
        ...

    def submit(self, job: Job) -> AsyncIterator[JobEvent]:
        """Yield the events of a job; exactly one of done, failed, cancelled comes last."""
        ...

    async def cancel(self, job_id: str) -> None:
        """Stop a job after its current step; unknown ids are ignored."""
        ...

    @property
    def status(self) -> EngineStatus: ...
