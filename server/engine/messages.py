"""What crosses the border between the server and its worker: a Job, and the events about it."""

from dataclasses import dataclass, field
from typing import Any, Literal

from cache.plan import NO_REUSE, CachePlan

ImageFormat = Literal["JPG", "PNG", "WEBP"]
Rewrite = Literal["off", "recaption", "think"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Images to generate for one task. Sizes in pixels; one image per seed.

    With a rewrite the model first writes a better prompt, for each image from its own seed.
    """

    job_id: str
    prompt: str
    negative_prompt: str | None
    width_px: int | None  # None: the model chooses
    height_px: int | None
    num_steps: int
    guidance: float
    seeds: tuple[int, ...]
    image_format: ImageFormat
    quality: int
    scheduler: str = "Default"
    cache: CachePlan = NO_REUSE
    rewrite: Rewrite = "off"
    system_prompt: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Cancel:
    """Stop generating a job after its current step."""

    job_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerReady:
    """The worker has loaded its checkpoint and takes jobs."""

    description: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerFailed:
    """The worker cannot start; the message says why."""

    code: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StepDone:
    """One denoising step of one image is finished."""

    job_id: str
    image: int
    step: int
    num_steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TextWritten:
    """What the model has written so far for an image, before it generates."""

    job_id: str
    image: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageDone:
    """One image is generated and encoded."""

    job_id: str
    image: int
    seed: int
    encoded: bytes
    width_px: int
    height_px: int
    diagnostics: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobDone:
    """Every image of the job is generated."""

    job_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class JobFailed:
    """The job ended in an error."""

    job_id: str
    code: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class JobCancelled:
    """The job was stopped on request."""

    job_id: str


JobEnd = JobDone | JobFailed | JobCancelled
JobEvent = StepDone | TextWritten | ImageDone | JobEnd
WorkerEvent = WorkerReady | WorkerFailed | JobEvent
