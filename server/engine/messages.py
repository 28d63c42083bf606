"""Messages between server and worker: jobs and cancels one way, events the other."""

from dataclasses import dataclass, field

from pipeline.request import Diagnostics, ImageFormat, ImageRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """An image request with its id, and how its images are encoded. `quality` (20..99)."""

    job_id: str
    request: ImageRequest
    image_format: ImageFormat
    quality: int
    request_id: str = ""  # of the request that brought it, for the worker's log


@dataclass(frozen=True, kw_only=True, slots=True)
class Cancel:
    """Stop a job after its current step."""

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
class JobStep:
    """One denoising step of one image is finished."""

    job_id: str
    image: int
    step: int
    num_steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class JobText:
    """The text that the model has written so far for an image, before it generates the image."""

    job_id: str
    image: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class JobImage:
    """One image is generated and encoded."""

    job_id: str
    image: int
    encoded: bytes = field(repr=False)
    width_px: int
    height_px: int
    diagnostics: Diagnostics | None = None


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
JobEvent = JobStep | JobText | JobImage | JobEnd
WorkerEvent = WorkerReady | WorkerFailed | JobEvent
