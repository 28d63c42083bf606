"""Counts of requests and frames, by the route that served them and never by their own path."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.metrics import Metrics

OTHER = "other"  # paths and close codes that clients make up
CLOSE_CODES = (1000, 1001, 1005, 1006, 1008, 1009, 1011, 1012, 1013)


class Traffic:
    """Counts every HTTP request, and the frames and ends of every WebSocket."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or socket, and count it."""
        if scope["type"] == "http":
            await self._count_request(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._count_socket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _count_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, status = time.monotonic(), 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            route = route_of(scope)
            self._metrics.requests.labels(route, f"{status // 100}xx" if status else "none").inc()
            self._metrics.request_seconds.labels(route).observe(time.monotonic() - started)

    async def _count_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        code = 1006  # RFC 6455: it ended without a close frame
        received, sent = map(self._metrics.frames.labels, ("received", "sent"))

        async def receive_and_note() -> Message:
            nonlocal code
            message = await receive()
            if message["type"] == "websocket.receive":
                received.inc()
            elif message["type"] == "websocket.disconnect":
                code = message.get("code", 1005)
            return message

        async def send_and_note(message: Message) -> None:
            nonlocal code
            if message["type"] == "websocket.send":
                sent.inc()
            elif message["type"] == "websocket.close":
                code = message.get("code", 1000)
            await send(message)

        try:
            await self._app(scope, receive_and_note, send_and_note)
        finally:
            self._metrics.closes.labels(str(code) if code in CLOSE_CODES else OTHER).inc()


def route_of(scope: Scope) -> str:
    """Return the path of the route that took a request, with the names of its parameters."""
    path = getattr(scope.get("route"), "path", None)
    return OTHER if path is None else str(path).rstrip("/") or "/"
