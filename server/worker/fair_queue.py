"""The fair queue: which job runs next, so that no API key's burst delays the others.

Each owner has a counter of the work that was started for it, divided by its weight; the owner with
the smallest counter is next, and within an owner the highest priority, then the oldest job. An
owner that comes back from idling starts where the others are: it cannot save up. This is
start-time fair queueing (Goyal, Vin and Cheng 1996), with jobs as packets.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from server.engine.messages import Job


@dataclass(slots=True)
class _Owner:
    counter: float
    jobs: list[Job] = field(default_factory=list)  # the next one first


class FairQueue:
    """Jobs that wait, by owner. `cost` is what a job takes, in any one unit."""

    def __init__(self, cost: Callable[[Job], float]) -> None:
        self._cost = cost
        self._owners: dict[str, _Owner] = {}
        self._floor = 0.0  # the counter of the owner served last, before that

    def __len__(self) -> int:
        return sum(len(owner.jobs) for owner in self._owners.values())

    def __iter__(self) -> Iterator[Job]:
        """Yield the jobs in the order in which they will run if no other comes."""
        counters = {name: owner.counter for name, owner in self._owners.items() if owner.jobs}
        taken = dict.fromkeys(counters, 0)
        while counters:
            name = min(counters, key=counters.__getitem__)
            jobs = self._owners[name].jobs
            job = jobs[taken[name]]
            yield job
            taken[name] += 1
            counters[name] += self._share(job)
            if taken[name] == len(jobs):
                del counters[name]

    def push(self, job: Job) -> None:
        """Let a job wait, after those of its owner with the same priority."""
        owner = self._owners.setdefault(job.owner, _Owner(self._floor))
        if not owner.jobs:
            owner.counter = max(owner.counter, self._floor)
        place = sum(other.priority >= job.priority for other in owner.jobs)
        owner.jobs.insert(place, job)

    def peek(self) -> Job | None:
        """Return the job that runs next."""
        return next(iter(self), None)

    def pop(self) -> Job:
        """Take the job that runs next.

        Raises:
            IndexError: none waits.
        """
        job = self.peek()
        if job is None:
            raise IndexError("no job waits")
        owner = self._owners[job.owner]
        owner.jobs.remove(job)
        self._floor = owner.counter
        owner.counter += self._share(job)
        self._forget_idle()
        return job

    def remove(self, job_id: str) -> bool:
        """Take out a job that is not wanted any more; return whether it waited."""
        for owner in self._owners.values():
            for job in owner.jobs:
                if job.job_id == job_id:
                    owner.jobs.remove(job)
                    return True
        return False

    def _share(self, job: Job) -> float:
        return self._cost(job) / job.weight

    def _forget_idle(self) -> None:
        """Forget owners whose counter the next one to come would start at anyway."""
        idle = [n for n, o in self._owners.items() if not o.jobs and o.counter <= self._floor]
        for name in idle:
            del self._owners[name]
