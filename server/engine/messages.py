"""Messages between server and worker: jobs and control one way, events the other."""

from dataclasses import dataclass, field
from typing import Literal

from pipeline.request import Diagnostics, ImageFormat, ImageRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """An image request with its id, and how its images are encoded. `quality` (20..99).

    `owner` with its `weight`, and `priority` within the owner's jobs, decide when it runs.
    """

    job_id: str
    request: ImageRequest
    image_format: ImageFormat
    quality: int
    request_id: str = ""  # of the request that brought it, for the worker's log
    owner: str = ""
    weight: float = 1.0
    priority: int = 0
    has_previews: bool = False
    runs_alone: bool = False  # no other job beside it: one of them may have killed a worker


@dataclass(frozen=True, kw_only=True, slots=True)
class Cancel:
    """Stop a job after its current step."""

    job_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ShowPreviews:
    """Send previews of a job from its next step on."""

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


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """Bytes of one device; `kind` says which of them."""

    device: str
    kind: Literal["allocated", "reserved", "peak", "total"]
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerMemory:
    """The memory of the worker's devices, as torch counts it."""

    readings: tuple[MemoryReading, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class JobQueued:
    """The job waits; position 1 runs next."""

    job_id: str
    position: int


@dataclass(frozen=True, kw_only=True, slots=True)
class JobStarted:
    """The job runs now."""

    job_id: str
    has_previews: bool = False  # whether previews can be made for this checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class JobPrefilled:
    """The prompts of one image are prefilled. `seconds` of the worker's time it took."""

    job_id: str
    image: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class JobStep:
    """One denoising step of one image is finished. `preview` is encoded as the image will be."""

    job_id: str
    image: int
    step: int
    num_steps: int
    is_reused: bool = False
    seconds: float = 0.0
    preview: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobText:
    """The text that the model has written so far for an image, before it generates the image."""

    job_id: str
    image: int
    text: str
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class JobImage:
    """One image is generated and encoded; `seconds` to decode its latent, and to encode it."""

    job_id: str
    image: int
    encoded: bytes = field(repr=False)
    width_px: int
    height_px: int
    diagnostics: Diagnostics | None = None
    seconds: float = 0.0
    encode_seconds: float = 0.0


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
JobProgress = JobQueued | JobStarted | JobText | JobPrefilled | JobStep
JobEvent = JobProgress | JobImage | JobEnd
Control = Cancel | ShowPreviews
WorkerEvent = WorkerReady | WorkerFailed | WorkerMemory | JobEvent
