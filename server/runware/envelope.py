"""Error code -> HTTP status, and the envelope of a response with errors: the single table."""

from typing import Any

# Source: wire specification 1.8. Whatever is not listed is the caller's mistake. Clients send a
# task again on 429 and 5xx, so only faults that may pass are there.
_STATUS = {
    "invalidApiKey": 401,
    "missingApiKey": 401,
    "taskFailedOrNotFound": 404,
    "requestTooLarge": 413,
    "rateLimitExceeded": 429,
    "inferenceError": 500,
    "internalServerError": 500,
    "modelNotReady": 503,
    "serviceUnavailable": 503,
    "workerFailed": 503,
}


def http_status(code: str) -> int:
    """Return the HTTP status of a response whose only outcome is this error."""
    return _STATUS.get(code, 400)


def error_envelope(errors: list[dict[str, Any]], data: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the body of a response with errors.

    `error` repeats the first one: the Vercel AI SDK provider reads nothing else.
    """
    return {"data": data, "errors": errors, "error": errors[0]}
