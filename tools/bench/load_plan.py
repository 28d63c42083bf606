"""What a load run sends: the mix of tasks, the levels of load, and when each task is due."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from server.runware.errors import CommandError

Transport = Literal["sync", "async", "websocket"]
LoadKind = Literal["closed", "open"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mix:
    """What tasks are drawn from, each value as often as it stands there.

    The draws depend on the seed alone, so that every level and every run has the same tasks.
    """

    prompts: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    steps: tuple[int, ...]
    transports: tuple[Transport, ...]
    guidance: float
    seed: int


@dataclass(frozen=True, slots=True)
class Level:
    """One load: so many tasks at once (closed), or so many new ones a second (open)."""

    kind: LoadKind
    load: float

    @property
    def name(self) -> str:
        return f"{self.load:g} at once" if self.kind == "closed" else f"{self.load:g} requests/s"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadPlan:
    """A whole run: its levels one after the other, each with the same tasks."""

    mix: Mix
    levels: tuple[Level, ...]
    num_requests: int
    num_warm_up: int
    timeout_s: float = 600.0
    poll_every_s: float = 0.25
    has_queue_wait: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedTask:
    """One task. `due_s` after the start of its level it is to be sent; in a closed loop at once."""

    prompt: str
    image_seed: int
    width_px: int
    height_px: int
    num_steps: int
    transport: Transport
    due_s: float = 0.0


def new_levels(concurrencies: Sequence[int], rates: Sequence[float]) -> tuple[Level, ...]:
    """Return the levels of a run: closed loops, then open ones, lightest first.

    Raises:
        CommandError: a rate is not above 0.
    """
    wrong = [rate for rate in rates if not rate > 0]
    if wrong:
        raise CommandError(f"a rate must be above 0 requests a second, not {wrong[0]:g}")
    closed = [Level("closed", float(number)) for number in sorted(set(concurrencies))]
    opened = [Level("open", rate) for rate in sorted(set(rates))]
    return (*closed, *opened)


def plan_tasks(mix: Mix, level: Level, num_requests: int) -> list[PlannedTask]:
    """Return the tasks of a level in the order in which they are sent.

    The times between those of an open loop are exponential (a Poisson process), and the same
    draws at every rate.
    """
    draw, clock = random.Random(mix.seed), random.Random(f"arrivals {mix.seed}")
    tasks, due_s = [], 0.0
    for number in range(num_requests):
        width_px, height_px = draw.choice(mix.sizes)
        tasks.append(
            PlannedTask(
                prompt=mix.prompts[number % len(mix.prompts)],
                image_seed=mix.seed + number,
                width_px=width_px,
                height_px=height_px,
                num_steps=draw.choice(mix.steps),
                transport=draw.choice(mix.transports),
                due_s=due_s,
            )
        )
        if level.kind == "open":
            due_s += clock.expovariate(1.0) / level.load
    return tasks


def task_body(task: PlannedTask, model: str, guidance: float, task_uuid: str) -> dict[str, Any]:
    """Return a task as the API takes it, without what its transport adds."""
    return {
        "taskType": "imageInference",
        "taskUUID": task_uuid,
        "model": model,
        "positivePrompt": task.prompt,
        "seed": task.image_seed,
        "width": task.width_px,
        "height": task.height_px,
        "steps": task.num_steps,
        "CFGScale": guidance,
        "outputType": "URL",
    }
