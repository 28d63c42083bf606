"""Answers to requests that no route serves, and to faults of the server, in error envelopes."""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.disconnect import ClientGoneError
from server.api.openai_errors import error_object
from server.api.private import CHALLENGE, CHALLENGED_PATHS
from server.api.state import state_of
from server.runware.envelope import http_status, to_error_object
from server.runware.errors import TaskError

CLIENT_CLOSED_REQUEST = 499  # nginx's status; the access log alone gets it

log = logging.getLogger(__name__)


def add_fault_handlers(app: FastAPI) -> None:
    """Let unknown paths and methods, and bad values, be answered as clients read errors."""
    app.add_exception_handler(HTTPException, _answer_http_fault)
    app.add_exception_handler(TaskError, _answer_refusal)
    app.add_exception_handler(ClientGoneError, _answer_nobody)
    app.add_exception_handler(RequestValidationError, _answer_invalid_request)


async def _answer_http_fault(request: Request, fault: Exception) -> Response:
    assert isinstance(fault, HTTPException)
    if fault.status_code == 405:
        error = TaskError("unsupportedMethod", f"{request.method} is not supported here.")
    elif fault.status_code == 404:
        error = TaskError("unknownPath", f"There is nothing at {request.url.path[:200]}.")
    else:
        error = TaskError("invalidRequest", str(fault.detail))
    return _envelope(request, error, fault.status_code, dict(fault.headers or {}))


async def _answer_refusal(request: Request, fault: Exception) -> Response:
    """Answer what a dependency refused, such as a key."""
    assert isinstance(fault, TaskError)
    status = http_status(fault.code)
    is_challenged = status == 401 and request.url.path in CHALLENGED_PATHS
    return _envelope(request, fault, status, CHALLENGE if is_challenged else {})


async def _answer_nobody(request: Request, fault: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _answer_invalid_request(request: Request, fault: Exception) -> Response:
    assert isinstance(fault, RequestValidationError)
    first = fault.errors()[0]
    name = str(first["loc"][-1])[:80]
    message = f"Invalid value for '{name}' parameter: {first['msg'].lower()}."
    return _envelope(request, TaskError("invalidRequest", message, name), 400, {})


class ServerFaults:
    """Answers 500 in an envelope where the server fails, and logs why; clients get no words of it.

    It stands inside the other middleware, so that the answer has a request id and a page of another
    origin may read it. FastAPI's own handler stands outside.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; a socket's fault goes on, for there is nothing to answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def send_and_note(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception:
            if has_begun:  # the connection is cut, so that half an answer is not taken for a whole
                raise
            log.exception("%s %s failed", scope["method"], scope["path"])
            error = TaskError("internalServerError", "The server failed; its log says why.")
            await _envelope(Request(scope), error, 500, {})(scope, receive, send)


def _envelope(
    request: Request, error: TaskError, status: int, headers: dict[str, str]
) -> JSONResponse:
    """Return an envelope that Runware's clients and OpenAI's can read: both look at `error`."""
    state_of(request).count_error(error)
    runware = to_error_object(error)
    both = {**error_object(error, status), **runware}
    return JSONResponse({"data": [], "errors": [runware], "error": both}, status, headers)
