"""Response bodies: result items, error objects and envelopes."""

from typing import Any, Literal, NotRequired, cast

from pydantic import ConfigDict
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from server.runware.error_catalog import DEFAULT_STATUS, ERRORS
from server.runware.errors import TaskError
from server.runware.parameter_reference import reference

RETRY_AFTER_S = 5  # of answers with 429 and 503, if it cannot be estimated

OutputForm = Literal["URL", "base64Data", "dataURI"]


class ResultItem(TypedDict):
    """One finished image, in exactly the forms that its task requested."""

    taskType: Literal["imageInference"]
    taskUUID: str
    imageUUID: str
    seed: int
    imageURL: NotRequired[str]
    imageBase64Data: NotRequired[str]
    imageDataURI: NotRequired[str]
    cost: NotRequired[float]
    NSFWContent: NotRequired[bool]
    status: NotRequired[Literal["success"]]
    diagnostics: NotRequired[dict[str, Any]]


class ProcessingItem(TypedDict):
    """One image of a task that is not finished."""

    taskType: Literal["imageInference"]
    taskUUID: str
    imageUUID: str
    status: Literal["processing"]
    progress: int
    diagnostics: NotRequired[dict[str, Any]]


class AcknowledgementItem(TypedDict):
    """An accepted task whose images are polled for."""

    taskType: Literal["imageInference"]
    taskUUID: str


class EstimateItem(TypedDict):
    """What a task would cost, in USD for all its images: the answer of a dry run."""

    taskType: Literal["imageInference"]
    taskUUID: str
    cost: float


class ErrorObject(TypedDict, total=False):
    """One error. A code may bring fields beside those that are listed."""

    __pydantic_config__ = ConfigDict(  # type: ignore[misc]
        json_schema_extra={"required": ["code", "message"]}
    )
    code: str
    message: str
    parameter: str | list[str]
    documentation: str
    type: str
    min: float
    max: float
    multiplier: float
    allowedValues: list[Any]
    imageUUIDs: list[str]
    taskUUID: str
    taskType: str
    status: Literal["error"]
    retryAfter: int


# Items of the other task types have fields of their own, made and read nowhere else.
Item = ResultItem | ProcessingItem | AcknowledgementItem | EstimateItem | dict[str, Any]


class Envelope(TypedDict, total=False):
    """The body of a response, or a frame of a WebSocket."""

    data: list[Item]
    errors: list[ErrorObject]
    error: ErrorObject


def http_status(code: str) -> int:
    """Return the HTTP status of a response whose only outcome is an error with this code."""
    kind = ERRORS.get(code)
    return DEFAULT_STATUS if kind is None else kind.status


def is_polled(error: ErrorObject) -> bool:
    """Return whether an error is what a poll reports: the poll itself succeeded.

    Clients send a poll that got a 5xx again, up to three times, before they report the error.
    """
    return error.get("status") == "error"


def error_envelope(errors: list[ErrorObject]) -> Envelope:
    """Return the body of a response without any result.

    `error` repeats the first one: the Vercel AI SDK provider reads nothing else.
    """
    return {"data": [], "errors": errors, "error": errors[0]}


def to_error_object(error: TaskError, task: object = None) -> ErrorObject:
    """Return the API's error object; the task's own UUID and type let clients route it."""
    fields: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.parameter is not None:
        fields["parameter"] = error.parameter
    fields |= {**reference(error.parameter), **error.details}
    if isinstance(task, dict):
        for name in ("taskUUID", "taskType"):
            if isinstance(task.get(name), str):
                fields.setdefault(name, task[name])
    return cast(ErrorObject, fields)


def retry_after_s(error: TaskError | ErrorObject) -> int:
    """Return after how many seconds a request that got 429 or 503 is worth sending again."""
    fields = error.details if isinstance(error, TaskError) else error
    return int(fields.get("retryAfter") or RETRY_AFTER_S)


def as_task_error(error: ErrorObject) -> TaskError:
    """Return the error that an error object was made of; whoever reports it adds the task's."""
    fields: dict[str, Any] = {k: v for k, v in error.items() if k not in ("taskUUID", "taskType")}
    code, message = fields.pop("code", "taskFailed"), fields.pop("message", "The task failed.")
    return TaskError(code, message, fields.pop("parameter", None), fields)


def echo_uuid(task: dict[str, Any]) -> dict[str, str]:
    """Return the field that repeats a task's UUID, or nothing if it has none."""
    value = task.get("taskUUID")
    return {"taskUUID": value} if isinstance(value, str) else {}
