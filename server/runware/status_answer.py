"""The answer of `GET /v1/status`: worker, queue, speeds, and the tasks of the caller's key."""

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

_SECONDS_LEFT = Field(description="Until it will have ended; null while that is not known.")


class DeviceMemory(TypedDict):
    """Memory of one device, as the worker reported it last."""

    device: str
    allocatedBytes: int | None
    peakBytes: int | None
    totalBytes: int | None


class WorkerState(TypedDict):
    """What generates the images."""

    ready: bool
    description: Annotated[str, Field(description="What is loaded, or why it is not ready.")]
    memoryBytes: Annotated[
        int | None, Field(description="Of the worker's processes; null where it is not known.")
    ]
    devices: Annotated[list[DeviceMemory], Field(description="Its GPUs; none on a CPU.")]
    deaths: Annotated[int, Field(description="Of workers since the server started.")]


class QueueState(TypedDict):
    """Tasks of all keys that this server has accepted and not ended."""

    running: int
    queued: int
    images: Annotated[int, Field(description="Images of all these tasks.")]
    maxImages: Annotated[int, Field(description="Beyond this a task gets 429.")]
    otherKeys: Annotated[int, Field(description="Tasks of other keys, which are not listed.")]
    estimatedSeconds: Annotated[float | None, _SECONDS_LEFT]


class TaskState(TypedDict):
    """One task of the key."""

    taskUUID: str
    status: Literal["running", "queued"]
    position: Annotated[int | None, Field(description="In the queue; 0 runs, 1 is next.")]
    progress: Annotated[int, Field(ge=0, le=100)]
    images: int
    width: Annotated[int | None, Field(description="Null if the model chooses the size.")]
    height: int | None
    steps: int | None
    ageSeconds: float
    estimatedSeconds: Annotated[float | None, _SECONDS_LEFT]


class Speed(TypedDict):
    """Seconds that the worker took lately, by what they depend on: exponential means."""

    megapixels: float
    guided: Annotated[bool, Field(description="Two evaluations a step, because of guidance.")]
    cache: Annotated[str, Field(description="The step cache with its thresholds, or `none`.")]
    scheduler: str
    secondsPerStep: float
    secondsPerPrefill: float | None
    secondsPerDecode: float | None
    inputImages: NotRequired[Annotated[int, Field(description="Of each task, if it had any.")]]


class Status(TypedDict):
    """The state of a server, as one key may see it."""

    version: str
    model: str
    worker: WorkerState
    queue: QueueState
    tasks: list[TaskState]
    speeds: list[Speed]
