"""The engine protocol: run a job, report its events, cancel it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from server.engine.messages import Job, JobEvent, MemoryReading


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """Whether images can be generated now, and by what; otherwise the reason why not."""

    is_ready: bool
    description: str


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """What an engine measures of its worker: deaths since it was started, and memory.

    `memory` is that of devices, `resident_bytes` that of the processes. An engine whose workers lie
    elsewhere has none of them.
    """

    num_deaths: int = 0
    memory: tuple[MemoryReading, ...] = ()
    resident_bytes: int | None = None


class Engine(Protocol):
    """Runs jobs outside of this process."""

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

    async def show_previews(self, job_id: str) -> None:
        """Send previews of a job from its next step on, if its checkpoint has a preview map."""
        ...

    @property
    def status(self) -> EngineStatus: ...

    @property
    def figures(self) -> EngineFigures: ...
