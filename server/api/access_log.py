"""A request id in and out, and one log line per request, without bodies."""

import logging
import re
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("hyimage.access")

HEADER = b"x-request-id"
_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class AccessLog:
    """Takes the caller's X-Request-ID, or makes one, and gives it back with the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or socket."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(HEADER, b"")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex.encode()
        started = time.monotonic()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (HEADER, request_id)]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            log.info(
                "request id=%s method=%s path=%s status=%d seconds=%.3f",
                request_id.decode(),
                scope["method"],
                scope["path"],
                status,
                time.monotonic() - started,
            )
