"""Cross-origin requests: images for every web page, the API for those that a setting names."""

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

IMAGES = "/images/"
_READ_BY_PAGES = (
    "Accept-Ranges", "Content-Length", "Content-Range", "ETag", "Retry-After", "X-Request-ID",
)  # fmt: skip


class Cors:
    """Adds the headers with which browsers let pages of other origins read an answer."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._images = _allowing(app, ("*",), ("GET", "HEAD"))
        self._others = (
            _allowing(app, origins, ("GET", "HEAD", "POST", "DELETE")) if origins else app
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or socket."""
        is_image = scope["type"] == "http" and scope["path"].startswith(IMAGES)
        await (self._images if is_image else self._others)(scope, receive, send)


def _allowing(app: ASGIApp, origins: Sequence[str], methods: Sequence[str]) -> ASGIApp:
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=methods,
        allow_headers=("*",),  # keys come in Authorization; cookies are never used
        expose_headers=_READ_BY_PAGES,
    )
