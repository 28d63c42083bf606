"""Stored images over HTTP: for browsers, caches and readers of ranges.

Source: RFC 9110, sections 13 (conditional requests) and 14 (ranges).
"""

import re
import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from server.api.state import AppState, State
from server.delivery.images import MEDIA_TYPES, is_image_name, media_type
from server.runware.envelope import RETRY_AFTER_S
from server.runware.errors import TaskError

router = APIRouter()

MAX_AGE_S = 365 * 86400
SIGNED_S = 3600  # how long a signed URL works, if the image is kept so long

_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")
_IMAGE: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The image.",
        "content": dict.fromkeys(MEDIA_TYPES.values(), _IMAGE),
    },
    206: {"description": "A range of its bytes."},
    304: {"description": "The client has it already."},
    307: {"description": "It is at another address (`images.redirect`)."},
    404: {"description": "There is no such image, or it has expired."},
    416: {"description": "The range lies outside its bytes."},
}


# The route below is the first and serves both methods, so that `Allow` names both; the one above
# describes it.
@router.get(
    "/images/{name}",
    operation_id="getImage",
    response_class=Response,
    responses=_RESPONSES,
)
@router.api_route("/images/{name}", methods=["GET", "HEAD"], include_in_schema=False)
async def get_image(name: str, request: Request, state: State) -> Response:
    """Return a finished image; open to whoever knows its name."""
    expires_at = await _expiry(state, name)
    seconds_left = None if expires_at is None else int(expires_at - time.time())
    if not is_image_name(name) or (seconds_left is not None and seconds_left <= 0):
        return _missing()
    headers = {
        "ETag": f'"{name}"',  # a name never gets other bytes
        "Cache-Control": "no-cache",
        "Accept-Ranges": "bytes",
        "Access-Control-Allow-Origin": "*",
        "Cross-Origin-Resource-Policy": "cross-origin",
        "X-Content-Type-Options": "nosniff",
    }
    if seconds_left is not None:
        max_age_s = min(seconds_left, MAX_AGE_S)
        headers["Cache-Control"] = f"public, max-age={max_age_s}, immutable"
    try:
        if seconds_left is not None and state.images.is_signing and request.method == "GET":
            return await _redirect(state, name, min(seconds_left, SIGNED_S))
        content = await state.images.load(name)
    except TaskError as e:
        return JSONResponse({"detail": e.message}, 503, {"Retry-After": str(RETRY_AFTER_S)})
    if content is None:
        return _missing()
    return _answer(content, media_type(name), request, headers)


async def _expiry(state: AppState, name: str) -> float | None:
    """Return when an image expires; None if that is not stored: it is served while it exists."""
    try:
        return await state.store.image_expiry(name) if is_image_name(name) else None
    except TaskError:  # the images may be there although the database is not
        return None


async def _redirect(state: AppState, name: str, seconds: int) -> Response:
    """Return a redirect to the store; half of its URL's time is left when caches forget it."""
    url = await state.images.sign(name, seconds)
    headers = {
        "Cache-Control": f"public, max-age={seconds // 2}",
        "Access-Control-Allow-Origin": "*",
    }
    return RedirectResponse(url, 307, headers)


def _answer(content: bytes, kind: str, request: Request, headers: Mapping[str, str]) -> Response:
    """Return what a request wants of an image: nothing new, a range, or the whole."""
    asked, etag = request.headers, headers["ETag"]
    if _matches(asked.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    wanted = asked.get("range") if asked.get("if-range", etag) == etag else None
    if wanted is not None and request.method == "GET":
        size = len(content)
        bounds = byte_range(wanted, size)
        if bounds is not None and bounds[0] >= bounds[1]:
            outside = {**headers, "Content-Range": f"bytes */{size}", "Cache-Control": "no-store"}
            return Response(status_code=416, headers=outside)
        if bounds is not None:
            start, end = bounds
            part = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"}
            return Response(content[start:end], 206, part, kind)
    return Response(content, 200, headers, kind)


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """Return start and end of a Range header, or None for all: it is not understood.

    The range is empty if it lies outside. Several ranges at once are not understood, which
    RFC 9110 allows.
    """
    match = _RANGE.fullmatch(header.strip())
    first, last = match.groups() if match is not None else ("", "")
    if not first and not last:
        return None
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last) + 1, size) if last else size


def _matches(header: str, etag: str) -> bool:
    tags = {tag.strip().removeprefix("W/") for tag in header.split(",")}
    return bool(tags & {etag, "*"})


def _missing() -> Response:
    return JSONResponse({"detail": "there is no such image, or it has expired"}, 404)
