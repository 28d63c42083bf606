"""Estimates: how long tasks will take and wait, learned from those that ran.

The worker reports its own seconds of every prefill, step and decode; their exponential means, by
what they depend on, give the time of a task. Which tasks run beside it, and before it, gives the
rest: the worker interleaves the steps of its active jobs in turn.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.request import ImageRequest

Stage = Literal["prefill", "step", "decode"]
NEWEST = 0.2  # share of the newest value in an exponential mean


@dataclass(frozen=True, slots=True)
class Mode:
    """What the seconds of a step depend on."""

    pixels: int
    rows: int
    cache: str
    scheduler: str
    guidance: str = "plain"
    num_inputs: int = 0  # images that the task brought: more tokens to prefill and attend to

    @classmethod
    def of(cls, request: ImageRequest) -> "Mode":
        """Return the mode of a request; a size that the model chooses counts as a square one."""
        pixels = (request.width_px or 1024) * (request.height_px or 1024)
        plan = request.cache
        cache = f"{plan.name} {plan.tea_distance} {plan.fb_threshold_scale} {plan.start}-{plan.end}"
        rows = 2 if request.guidance > 1 else 1
        guidance, num_inputs = request.guidance_plan.name, len(request.images)
        return cls(pixels, rows, cache, request.scheduler, guidance, num_inputs)


@dataclass(slots=True)
class Work:
    """What is left of a task: so many steps, each of so many seconds."""

    steps: int
    step_s: float


@dataclass(slots=True)
class Estimates:
    """Learned seconds by stage and mode."""

    _means: dict[tuple[Stage, Mode], float] = field(default_factory=dict)

    def learn(self, stage: Stage, mode: Mode, seconds: float) -> None:
        """Note how long one prefill, step, or decode with its encoding took."""
        key = (stage, mode)
        before = self._means.get(key, seconds)
        self._means[key] = before + NEWEST * (seconds - before)

    def modes(self) -> set[Mode]:
        """Return the modes of which anything is known."""
        return {mode for _, mode in self._means}

    def mean(self, stage: Stage, mode: Mode) -> float | None:
        """Return the learned seconds of exactly this mode, None if it did not run."""
        return self._means.get((stage, mode))

    def seconds(self, stage: Stage, mode: Mode) -> float | None:
        """Return the expected seconds, from the most similar mode that ran; None if none did."""
        if (stage, mode) in self._means:
            return self._means[stage, mode]
        known = [other for kind, other in self._means if kind == stage]
        if not known:
            return None
        nearest = min(known, key=lambda other: _distance(mode, other))
        scale = mode.pixels * mode.rows / (nearest.pixels * nearest.rows)
        return self._means[stage, nearest] * scale

    def work(self, request: ImageRequest, num_images: int, num_steps_done: int) -> Work | None:
        """Return what is left of a task that has done so many steps, over all its images."""
        mode = Mode.of(request)
        step_s = self.seconds("step", mode)
        if step_s is None:
            return None
        steps = max(1, request.num_steps * num_images - num_steps_done)
        images = steps / request.num_steps
        fixed_s = (self.seconds("prefill", mode) or 0.0) + (self.seconds("decode", mode) or 0.0)
        return Work(steps, step_s + images * fixed_s / steps)


def finish_times(
    active: Sequence[Work], waiting: Iterable[Work], max_active: int
) -> tuple[list[float], list[float]]:
    """Return when each active and waiting job will have finished, in seconds from now.

    The active ones take one step each in turn; when one ends, the first that waits takes its place.
    """
    ends: dict[int, float] = {}
    running = {number: Work(work.steps, work.step_s) for number, work in enumerate(active)}
    queue = deque(enumerate(waiting, start=len(active)))
    num_jobs, now = len(active) + len(queue), 0.0
    while running or queue:
        while queue and len(running) < max_active:
            number, work = queue.popleft()
            running[number] = Work(work.steps, work.step_s)
        rounds = min(work.steps for work in running.values())
        now += rounds * sum(work.step_s for work in running.values())
        for number, work in list(running.items()):
            work.steps -= rounds
            if work.steps <= 0:
                ends[number] = now
                del running[number]
    in_order = [ends[number] for number in range(num_jobs)]
    return in_order[: len(active)], in_order[len(active) :]


def _distance(mode: Mode, other: Mode) -> tuple[bool, bool, bool, bool, int, float]:
    """Order modes by how much they differ: what is computed, input images, then size."""
    ratio = max(mode.pixels, other.pixels) / min(mode.pixels, other.pixels)
    return (
        mode.cache != other.cache,
        mode.scheduler != other.scheduler,
        mode.rows != other.rows,
        mode.guidance != other.guidance,
        abs(mode.num_inputs - other.num_inputs),
        ratio,
    )
