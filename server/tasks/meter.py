"""The meter of one task: counts and times what is done for it, for metrics, log line and answer."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from server.engine.messages import JobEvent, JobImage, JobPrefilled, JobStarted, JobStep, JobText
from server.logs import log_fields
from server.metrics import Kind, Metrics, Stage
from server.runware.errors import TaskError
from server.tasks.tables import TaskRow
from server.tracing import Headers, Trace

log = logging.getLogger("hyimage.tasks")

# Seconds by stage, in the order in which they came; `queue` is the wait before all others.
Seconds = dict[str, float]


def add_seconds(total: Seconds, more: Seconds) -> None:
    """Add the seconds of each stage to those of a request's other tasks."""
    for stage, seconds in more.items():
        total[stage] = total.get(stage, 0.0) + seconds


class TaskMeter:
    """What one task took: seconds by stage, steps, images. `seconds` grows as it runs."""

    def __init__(self, row: TaskRow, metrics: Metrics, trace: Trace, seconds: Seconds) -> None:
        self._row = row
        self._trace = trace
        self._metrics = metrics
        self._seconds = seconds
        self._text_s = 0.0
        self._size = ""
        self._num_images = self._num_steps = self._num_reused = 0

    def note(self, event: JobEvent) -> None:
        """Count an event of the worker, with the seconds that it reports."""
        match event:
            case JobStarted() if "queue" not in self._seconds:  # not after a worker's death
                self._seconds["queue"] = max(0.0, time.time() - self._row.created_at)
                self._metrics.queue_wait_seconds.observe(self._seconds["queue"])
                self._trace.add("queue", self._row.created_at, time.time())
            case JobText():
                self._text_s += event.seconds  # texts come in pieces
                self._trace.extend("text", event.image, event.seconds)
            case JobPrefilled():
                if self._text_s:
                    self._observe("text", self._text_s)
                    self._text_s = 0.0
                self._observe("prefill", event.seconds)
                self._trace.close("text", event.image)
                self._add_span("prefill", event.image, event.seconds)
            case JobStep():
                kind: Kind = "reused" if event.is_reused else "computed"
                self._num_steps += 1
                self._num_reused += event.is_reused
                self._metrics.steps.labels(kind).inc()
                self._observe("step", event.seconds)
                self._trace.extend("denoise", event.image, event.seconds)
            case JobImage():
                self._observe("decode", event.seconds)
                self._observe("encode", event.encode_seconds)
                self._trace.close("denoise", event.image)
                self._add_span("decode", event.image, event.seconds, event.encode_seconds)
                self._add_span("encode", event.image, event.encode_seconds)
            case _:
                pass

    @property
    def trace_headers(self) -> Headers:
        """The trace context for uploads and webhooks of this task."""
        return self._trace.headers

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Time a stage that this process runs itself, also one that fails."""
        started = time.monotonic()
        try:
            with self._trace.stage(stage):
                yield
        finally:
            self._observe(stage, time.monotonic() - started)

    def note_stored(self, done: JobImage) -> None:
        """Count an image that is stored."""
        self._num_images += 1
        self._size = f"{done.width_px}x{done.height_px}"
        self._metrics.images.inc()
        self._metrics.megapixels.inc(done.width_px * done.height_px / 1e6)
        if done.diagnostics is not None:
            evaluations = self._metrics.evaluations
            evaluations.labels("computed").inc(done.diagnostics.num_evaluations)
            evaluations.labels("reused").inc(done.diagnostics.num_reused_evaluations)

    def note_end(self, failure: TaskError | None) -> None:
        """Count how the task ended."""
        self._metrics.tasks.labels("success" if failure is None else failure.code).inc()
        if failure is None:
            self._metrics.task_seconds.observe(time.time() - self._row.created_at)

    def log_end(self, failure: TaskError | None) -> None:
        """Write one line about a task that has ended: never its prompt, a key or a URL."""
        row = self._row
        values: dict[str, object] = {
            "uuid": row.task_uuid,
            "key": row.owner,
            "outcome": "success" if failure is None else failure.code,
            "size": self._size or f"{row.width or 'auto'}x{row.height or 'auto'}",
            "images": self._num_images,
            "steps": self._num_steps,
            "reused": self._num_reused,
            "total_s": round(time.time() - row.created_at, 3),
        }
        values |= {f"{stage}_s": round(seconds, 3) for stage, seconds in self._seconds.items()}
        log_fields(log, logging.INFO, "task", values)

    def end_trace(self, failure: TaskError | None) -> None:
        """End the task's span, also that of a task that stays for the next start."""
        self._trace.end(
            None if failure is None else failure.code,
            task_uuid=self._row.task_uuid,
            images=self._num_images,
            steps=self._num_steps,
            steps_reused=self._num_reused,
        )

    def _add_span(self, stage: Stage, image: int, seconds: float, later_s: float = 0.0) -> None:
        """Add the span of a stage that ended when its report was sent, less what came later."""
        ended_at = time.time() - later_s
        self._trace.add(stage, ended_at - seconds, ended_at, image=image)

    def _observe(self, stage: Stage, seconds: float) -> None:
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds
        self._metrics.stage_seconds.labels(stage).observe(seconds)
