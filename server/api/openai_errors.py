"""Errors in the form of the OpenAI API: message, type, param and code, in its callers' names.

Source: "Error codes" of the OpenAI API reference.
"""

import re

from fastapi.responses import JSONResponse
from pydantic import ValidationError

from server.runware.envelope import http_status, retry_after_s
from server.runware.errors import TaskError

_NAMES = {
    "positivePrompt": "prompt",
    "negativePrompt": "negative_prompt",
    "numberResults": "n",
    "CFGScale": "guidance_scale",
    "outputFormat": "output_format",
    "outputQuality": "output_compression",
    "outputType": "response_format",
    "width": "size",
    "height": "size",
    "seedImage": "image",
    "referenceImages": "image",
}
_CODES = {
    "missingApiKey": "invalid_api_key",
    "invalidApiKey": "invalid_api_key",
    "rateLimitExceeded": "rate_limit_exceeded",
    "quotaExceeded": "insufficient_quota",
    "requestTooLarge": "request_too_large",
    "invalidJSON": "invalid_json",
    "promptTooLong": "string_above_max_length",
}
_TYPES = {429: "rate_limit_error"}


def failure(error: TaskError) -> JSONResponse:
    """Return the response to a request that failed."""
    status = http_status(error.code)
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    if status in (429, 503):
        headers = {"Retry-After": str(retry_after_s(error))}
    return JSONResponse({"error": error_object(error, status)}, status, headers)


def error_object(error: TaskError, status: int) -> dict[str, object]:
    """Return OpenAI's error object for an error of a task."""
    parameter = error.parameter[0] if isinstance(error.parameter, list) else error.parameter
    name, bracket, place = (parameter or "").partition("[")
    param = None if status == 401 or not name else _NAMES.get(name, name) + bracket + place
    default = "server_error" if status >= 500 else "invalid_request_error"
    return {
        "message": re.sub(r"'(\w+)((?:\[\d+\])?)'", _in_callers_names, error.message),
        "type": _TYPES.get(status, default),
        "param": param,
        "code": _CODES.get(error.code, _default_code(error.code)),
    }


def first_fault(error: ValidationError) -> TaskError:
    """Return the first fault of a body that is not as its schema says."""
    fault = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    name = str(fault["loc"][0])[:80]
    if fault["type"] == "extra_forbidden":
        return TaskError("unknown_parameter", f"Unknown parameter: '{name}'.", name)
    if fault["type"] == "missing":
        message = f"Missing required parameter: '{name}'."
        return TaskError("missing_required_parameter", message, name)
    code = "invalid_type" if fault["type"].endswith("_type") else "invalid_value"
    return TaskError(code, f"Invalid value for '{name}': {fault['msg'].lower()}.", name)


def _in_callers_names(match: re.Match[str]) -> str:
    return f"'{_NAMES.get(match[1], match[1])}{match[2]}'"


def _default_code(code: str) -> str:
    if code.startswith(("invalid", "unsupported")) and "_" not in code:
        return "invalid_value"
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", code).lower()
