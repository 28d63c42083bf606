"""Body limit: no route receives more of a request than the setting allows."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.runware.errors import TaskError


class BodyLimit:
    """Ends the reading of a body at the limit, so that the route answers 413 in its own form."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; its body raises a TaskError, requestTooLarge, beyond the limit."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        size_bytes = 0

        async def receive_within_limit() -> Message:
            nonlocal size_bytes
            message = await receive()
            size_bytes += len(message.get("body", b""))
            if size_bytes > self._limit:
                reason = f"The request is larger than {self._limit} bytes."
                raise TaskError("requestTooLarge", reason)
            return message

        await self._app(scope, receive_within_limit, send)
