"""Pages that need a key where `server.private` names them: metrics, docs, and /ready's detail."""

import base64
import binascii
import contextlib
from collections.abc import Callable

from starlette.requests import Request

from server.api.frames import bearer_key
from server.api.state import AppState, State
from server.runware.errors import TaskError
from server.settings import PrivatePage

# A browser asks its user for a name and a password, the key; a program sends it as Bearer.
CHALLENGE = {"WWW-Authenticate": 'Basic realm="hyimage", charset="UTF-8", Bearer'}
CHALLENGED_PATHS = ("/docs", "/openapi.json", "/metrics")


def key_needed(page: PrivatePage) -> Callable[[Request, State], None]:
    """Return a dependency that refuses callers without a key where a page is private."""

    def check(request: Request, state: State) -> None:
        if page in state.settings.server.private:
            state.keys.check(_given_key(request))

    return check


def may_see(page: PrivatePage, request: Request, state: AppState) -> bool:
    """Return whether a caller may see what is private of a page."""
    try:
        key_needed(page)(request, state)
    except TaskError:
        return False
    return True


def _given_key(request: Request) -> str | None:
    header = request.headers.get("authorization")
    if header is None or not header.lower().startswith("basic "):
        return bearer_key(header)
    with contextlib.suppress(binascii.Error, UnicodeDecodeError):
        return base64.b64decode(header[6:].strip()).decode().partition(":")[2]
    return None
