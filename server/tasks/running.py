"""Running tasks: the state of each task that this process generates, until it has ended."""

import asyncio
import base64
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import assert_never

from pipeline.request import ImageRequest
from server.delivery.images import media_type
from server.engine.messages import (
    JobImage,
    JobPrefilled,
    JobProgress,
    JobQueued,
    JobStarted,
    JobStep,
    JobText,
)
from server.runware.errors import TaskError
from server.tasks.estimates import Estimates, Mode, Work, finish_times
from server.tasks.events import EventLog
from server.tasks.meter import Seconds
from server.tasks.tables import ImageRow, TaskRow

MAX_ENDED = 256  # logs of ended tasks that are kept, for clients that continue


@dataclass(frozen=True, slots=True)
class FinishedImage:
    """An image with its bytes, for followers."""

    row: ImageRow
    encoded: bytes = field(repr=False)


# What followers of a task receive: each image, then a failure, or None for success.
Outcome = FinishedImage | TaskError | None


@dataclass(slots=True)
class RunningTask:
    """A task that this process generates. `progress` in percent, `texts` by image position.

    `seconds` by stage are those of its meter.
    `position` is its place in the worker's queue, 0 once it runs.
    """

    row: TaskRow
    num_images: int
    request: ImageRequest | None = None
    progress: int = 0
    num_steps_done: int = 0
    num_kept: int = 0  # of the images, those that are stored
    position: int | None = None
    is_cancelled: bool = False
    texts: dict[int, str] = field(default_factory=dict)
    seconds: Seconds = field(default_factory=dict)
    log: EventLog = field(default_factory=EventLog)
    followers: list["asyncio.Queue[Outcome]"] = field(default_factory=list)

    @property
    def has_started(self) -> bool:
        return self.position == 0

    def follow(self) -> "asyncio.Queue[Outcome]":
        """Return a queue that receives every outcome from now on."""
        outcomes: asyncio.Queue[Outcome] = asyncio.Queue()
        self.followers.append(outcomes)
        return outcomes

    def publish(self, outcome: Outcome) -> None:
        """Put an outcome into the queues of all followers."""
        for outcomes in self.followers:
            outcomes.put_nowait(outcome)

    def note_progress(
        self, event: JobProgress, positions: Sequence[int], estimates: Estimates
    ) -> None:
        """Take note of an event of the job, which generates the images at these positions."""
        mode = None if self.request is None else Mode.of(self.request)
        match event:
            case JobQueued(position=position):
                self.position, self.num_steps_done = position, 0
                self.log.add("queued", {"position": position})
            case JobStarted(has_previews=has_previews):
                self.position = 0
                self.log.add("started", {"hasPreviews": has_previews})
            case JobText(image=image, text=text):
                self.texts[positions[image]] = text
                self.log.add("text", {"image": positions[image], "text": text})
            case JobPrefilled():
                if mode is not None:
                    estimates.learn("prefill", mode, event.seconds)
            case JobStep():
                if mode is not None:
                    estimates.learn("step", mode, event.seconds)
                self._note_step(event, positions)
            case _:
                assert_never(event)

    def _note_step(self, event: JobStep, positions: Sequence[int]) -> None:
        self.num_steps_done += 1
        total = event.num_steps * len(positions)
        self.progress = min(99, 100 * self.num_steps_done // total)
        image = positions[event.image]
        values = {
            "image": image,
            "step": event.step,
            "numSteps": event.num_steps,
            "reused": event.is_reused,
            "progress": self.progress,
        }
        self.log.add("step", values)
        if event.preview is not None:
            name = f"preview.{self.row.request.get('outputFormat') or 'JPG'}".lower()
            text = base64.b64encode(event.preview).decode("ascii")
            uri = f"data:{media_type(name)};base64,{text}"
            self.log.add("preview", {"image": image, "step": event.step, "dataURI": uri})

    def note_image(self, row: ImageRow, done: JobImage, estimates: Estimates) -> None:
        """Take note of an image that is stored."""
        self.num_kept += 1
        if self.request is not None:
            seconds = done.seconds + done.encode_seconds
            estimates.learn("decode", Mode.of(self.request), seconds)
        self.publish(FinishedImage(row, done.encoded))
        self.log.add("image", {}, row)

    def work(self, estimates: Estimates) -> Work | None:
        """Return what is left to do, None while nothing is known of tasks like it."""
        if self.request is None:
            return None
        return estimates.work(self.request, self.num_images, self.num_steps_done)


@dataclass(frozen=True, slots=True)
class TaskCounts:
    """Tasks that wait, tasks that are generated, and the images that both will have."""

    num_waiting: int
    num_started: int
    num_images: int


class RunningTasks(dict[str, RunningTask]):
    """The running tasks by UUID, and the logs of those that ended last."""

    def __init__(self, max_active: int) -> None:
        super().__init__()
        self.estimates = Estimates()
        self._max_active = max_active
        self._ended: OrderedDict[str, EventLog] = OrderedDict()

    def log_of(self, task_uuid: str) -> EventLog | None:
        """Return the log of a task that runs here, or did lately."""
        running = self.get(task_uuid)
        return self._ended.get(task_uuid) if running is None else running.log

    def count(self) -> TaskCounts:
        """Return how many tasks wait and are generated, and the images of both."""
        num_started = sum(task.has_started for task in self.values())
        num_images = sum(task.num_images for task in self.values())
        return TaskCounts(len(self) - num_started, num_started, num_images)

    def forget(self, task_uuid: str) -> None:
        """Forget a task that has ended, but keep its log for a while."""
        self._ended[task_uuid] = self.pop(task_uuid).log
        while len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)

    def seconds_left(self, task_uuid: str) -> float | None:
        """Return the seconds until a task will have ended, None if that cannot be estimated."""
        ends = self._ends()
        return None if ends is None else ends.get(task_uuid)

    def seconds_until_idle(self) -> float | None:
        """Return the seconds until the last task will have ended, None if unknown."""
        ends = self._ends()
        return None if ends is None else max(ends.values(), default=0.0)

    def seconds_until_room(self) -> float | None:
        """Return the seconds until the first task will have ended, None if unknown."""
        ends = self._ends()
        return min(ends.values()) if ends else None

    def _ends(self) -> dict[str, float] | None:
        order = sorted(
            self.items(),
            key=lambda item: len(self) if item[1].position is None else item[1].position,
        )
        works = [(uuid, task.has_started, task.work(self.estimates)) for uuid, task in order]
        known = [(uuid, started, work) for uuid, started, work in works if work is not None]
        if len(known) < len(works):
            return None
        active = [(uuid, work) for uuid, started, work in known if started]
        waiting = [(uuid, work) for uuid, started, work in known if not started]
        ends = finish_times(
            [work for _, work in active], [work for _, work in waiting], self._max_active
        )
        names = [uuid for uuid, _ in (*active, *waiting)]
        return dict(zip(names, (*ends[0], *ends[1]), strict=True))
