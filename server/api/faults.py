"""Answers to requests that no route serves, and to faults of the server, in error envelopes."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from server.api.disconnect import ClientGoneError
from server.api.openai_errors import error_object
from server.api.private import CHALLENGE, CHALLENGED_PATHS
from server.runware.envelope import http_status, to_error_object
from server.runware.errors import TaskError

CLIENT_CLOSED_REQUEST = 499  # nginx's status; the access log alone gets it


def add_fault_handlers(app: FastAPI) -> None:
    """Let unknown paths and methods, and unforeseen errors, be answered as clients read errors."""
    app.add_exception_handler(HTTPException, _answer_http_fault)
    app.add_exception_handler(TaskError, _answer_refusal)
    app.add_exception_handler(ClientGoneError, _answer_nobody)
    app.add_exception_handler(RequestValidationError, _answer_invalid_request)
    app.add_exception_handler(Exception, _answer_server_fault)


async def _answer_http_fault(request: Request, fault: Exception) -> Response:
    assert isinstance(fault, HTTPException)
    if fault.status_code == 405:
        error = TaskError("unsupportedMethod", f"{request.method} is not supported here.")
    elif fault.status_code == 404:
        error = TaskError("unknownPath", f"There is nothing at {request.url.path[:200]}.")
    else:
        error = TaskError("invalidRequest", str(fault.detail))
    return _envelope(error, fault.status_code, dict(fault.headers or {}))


async def _answer_refusal(request: Request, fault: Exception) -> Response:
    """Answer what a dependency refused, such as a key."""
    assert isinstance(fault, TaskError)
    status = http_status(fault.code)
    is_challenged = status == 401 and request.url.path in CHALLENGED_PATHS
    return _envelope(fault, status, CHALLENGE if is_challenged else {})


async def _answer_nobody(request: Request, fault: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _answer_invalid_request(request: Request, fault: Exception) -> Response:
    assert isinstance(fault, RequestValidationError)
    first = fault.errors()[0]
    name = str(first["loc"][-1])[:80]
    message = f"Invalid value for '{name}' parameter: {first['msg'].lower()}."
    return _envelope(TaskError("invalidRequest", message, name), 400, {})


async def _answer_server_fault(request: Request, fault: Exception) -> Response:
    """The access log and the server's log have the traceback; clients get no words of it."""
    error = TaskError("internalServerError", "The server failed; its log says why.")
    return _envelope(error, 500, {})


def _envelope(error: TaskError, status: int, headers: dict[str, str]) -> JSONResponse:
    """Return an envelope that Runware's clients and OpenAI's can read: both look at `error`."""
    runware = to_error_object(error)
    both = {**error_object(error, status), **runware}
    return JSONResponse({"data": [], "errors": [runware], "error": both}, status, headers)
