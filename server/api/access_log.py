"""Access log: a request id in and out, and one line per request or socket, without bodies."""

import logging
import re
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.logs import log_fields
from server.process import request_id
from server.tracing import incoming, trace_headers

log = logging.getLogger("hyimage.access")

HEADER = b"x-request-id"
PROBES = ("/health", "/ready", "/metrics")  # called every few seconds: lines at debug level
_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class AccessLog:
    """Takes the caller's X-Request-ID, or makes one, and gives it back with the answer.

    While a request or socket is served, every log line carries the id.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or socket."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(HEADER, b"")
        header = given if _ID.fullmatch(given) else uuid.uuid4().hex.encode()
        request_id.set(header.decode())
        incoming.set(trace_headers(dict(scope["headers"])))
        started = time.monotonic()
        status = 0  # a socket's is its close code

        async def receive_and_note() -> Message:
            nonlocal status
            message = await receive()
            if message["type"] == "websocket.disconnect":
                status = message.get("code", 1005)
            return message

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.accept"):
                message["headers"] = [*message.get("headers", ()), (HEADER, header)]
                status = message.get("status", 0)
            elif message["type"] == "websocket.close":
                status = message.get("code", 1000)
            await send(message)

        try:
            await self._app(scope, receive_and_note, send_with_id)
        finally:
            log_fields(
                log,
                logging.DEBUG if scope["path"] in PROBES else logging.INFO,
                "request" if scope["type"] == "http" else "socket",
                {
                    "id": header.decode(),
                    "method": scope.get("method", "GET"),
                    "path": scope["path"],
                    "status": status,
                    "seconds": round(time.monotonic() - started, 3),
                },
            )
