"""The event sender: encodes images and sends events to the server, on a thread of its own.

A large PNG takes tenths of a second to encode; the device generates meanwhile.
"""

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import assert_never

from pipeline.encode import encode_image
from pipeline.request import Event, ImageDone, PromptPrefilled, StepDone, TextWritten
from server.engine.messages import (
    Job,
    JobEnd,
    JobFailed,
    JobImage,
    JobPrefilled,
    JobStep,
    JobText,
    WorkerEvent,
)
from server.process import request_id

log = logging.getLogger(__name__)

PREVIEW_QUALITY = 80


class EventSender:
    """Sends what it is given, first in, first out; each job ends once."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="events")
        self._failed: set[str] = set()
        self._last: Future[None] | None = None

    def send(self, event: WorkerEvent) -> None:
        """Send an event after those before it."""
        self._last = self._thread.submit(self._send, event)

    def send_event(self, job: Job, event: Event, seconds: float = 0.0) -> None:
        """Send an event of a job's generation after those before it; images are encoded.

        `seconds` is how long the worker took for what the event reports.
        """
        match event:
            case TextWritten(image=image, text=text):
                self.send(JobText(job_id=job.job_id, image=image, text=text, seconds=seconds))
            case PromptPrefilled(image=image):
                self.send(JobPrefilled(job_id=job.job_id, image=image, seconds=seconds))
            case StepDone():
                self._last = self._thread.submit(self._send_step, job, event, seconds)
            case ImageDone():
                self._last = self._thread.submit(self._encode, job, event, seconds)
            case _:
                assert_never(event)

    def close(self) -> None:
        """Wait until everything is sent.

        Raises:
            OSError: the server is gone.
        """
        self._thread.shutdown(wait=True)
        if self._last is not None:
            self._last.result()

    def _send(self, event: WorkerEvent) -> None:
        job_id = getattr(event, "job_id", "")
        if job_id in self._failed:  # it has ended already
            if isinstance(event, JobEnd):
                self._failed.discard(job_id)
            return
        self._pipe.send(event)

    def _send_step(self, job: Job, done: StepDone, seconds: float) -> None:
        preview = None
        if done.preview_yx3 is not None:
            preview = encode_image(done.preview_yx3, job.image_format, PREVIEW_QUALITY)
        self._send(
            JobStep(
                job_id=job.job_id,
                image=done.image,
                step=done.step,
                num_steps=done.num_steps,
                is_reused=done.is_reused,
                seconds=seconds,
                preview=preview,
            )
        )

    def _encode(self, job: Job, done: ImageDone, seconds: float) -> None:
        request_id.set(job.request_id or "-")  # this thread's own: contexts are not inherited
        started = time.perf_counter()
        try:
            encoded = encode_image(done.pixels_yx3, job.image_format, job.quality)
        except Exception:  # one image's failure must not leave its job without an end
            log.exception("job %s: an image could not be encoded", job.job_id)
            reason = "the image could not be encoded; the server's log has the details"
            self._send(JobFailed(job_id=job.job_id, code="inferenceError", message=reason))
            self._failed.add(job.job_id)
            return
        self._send(
            JobImage(
                job_id=job.job_id,
                image=done.image,
                encoded=encoded,
                width_px=done.width_px,
                height_px=done.height_px,
                diagnostics=done.diagnostics,
                seconds=seconds,
                encode_seconds=time.perf_counter() - started,
            )
        )
