"""Error code -> HTTP status and error object: the single table."""

from typing import Any

from server.errors import TaskError

# Source: wire specification 1.8. Whatever is not listed is the caller's mistake.
_STATUS = {
    "rateLimitExceeded": 429,
    "requestTooLarge": 413,
    "inferenceError": 500,
    "workerFailed": 503,
    "modelNotReady": 503,
    "serviceUnavailable": 503,
}


def http_status(code: str) -> int:
    """Return the HTTP status of a response whose only outcome is this error."""
    return _STATUS.get(code, 400)


def error_object(error: TaskError, task: object = None) -> dict[str, Any]:
    """Return the API's error object; the task's own UUID and type let clients route it."""
    fields: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.parameter is not None:
        fields["parameter"] = error.parameter
    fields |= error.details
    if isinstance(task, dict):
        for name in ("taskUUID", "taskType"):
            if isinstance(task.get(name), str):
                fields[name] = task[name]
    return fields


def error_envelope(errors: list[dict[str, Any]], data: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the body of a response with errors.

    `error` repeats the first one: the Vercel AI SDK provider reads nothing else.
    """
    return {"data": data, "errors": errors, "error": errors[0]}
