"""The page at `/`: its files as they are, and what it needs of this server as one object."""

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Any, get_args

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from schedulers.catalog import CATALOG
from server.api.state import AppState, State
from server.runware.parameter_reference import bounds
from server.runware.schemas import MAX_PROMPT, Acceleration
from server.settings import SettingsError

router = APIRouter(include_in_schema=False)

INDEX = "index.html"
_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_BOUNDED = ("steps", "CFGScale", "numberResults", "seed")
# Scripts and styles come from here alone, and none stands in the HTML: text that a prompt or an
# error brings onto the page cannot run. Finished images and previews are blobs and data URIs.
HEADERS = {
    "Content-Security-Policy": "; ".join((
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Asked for again at every visit, and answered with 304 until the server is another.
    "Cache-Control": "no-cache",
}  # fmt: skip

# Prompts that are offered with a checkpoint that draws anything.
EXAMPLES = (
    "A lighthouse on a basalt cliff at dawn, waves breaking below, long exposure, soft pink light",
    "A ceramic teapot shaped like a sleeping fox on a linen tablecloth, studio light",
    "A hand-painted sign over a bakery door that reads FRESH BREAD, morning in a narrow street",
    "An isometric cutaway of a tiny submarine library, warm lamps, fish at the windows",
)


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file of the page, as it is sent."""

    content: bytes
    media_type: str
    etag: str


def load_page_files() -> dict[str, PageFile]:
    """Return the files of the page by name."""
    files = {}
    for item in resources.files("server.page").iterdir():
        media_type = _MEDIA_TYPES.get(item.name.rpartition(".")[2])
        if media_type is not None:
            content = item.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            files[item.name] = PageFile(content, media_type, etag)
    if INDEX not in files:
        raise SettingsError("the page's files are missing from this installation; install it again")
    return files


_FILES = load_page_files()


@router.get("/")
async def get_index(request: Request) -> Response:
    """Return the page."""
    return _send(request, _FILES[INDEX])


@router.get("/page/config.json")
async def get_config(state: State) -> JSONResponse:
    """Return what the page shows and offers; it holds nothing that needs a key."""
    return JSONResponse(page_config(state), headers=HEADERS)


@router.get("/page/{name}")
async def get_file(request: Request, name: str) -> Response:
    """Return a file of the page."""
    if name not in _FILES:
        return JSONResponse({"detail": f"the page has no file {name[:80]!r}"}, 404, HEADERS)
    return _send(request, _FILES[name])


def page_config(state: AppState) -> dict[str, Any]:
    """Return the served model, its sizes and abilities, and the bounds of parameters."""
    checkpoint, settings, status = state.tasks.checkpoint, state.settings, state.tasks.status
    vocabulary = checkpoint.vocabulary
    return {
        "model": settings.api.model,
        "worker": status.description,
        "ready": status.is_ready,
        "needsKey": bool(state.keys),
        "sizes": [[size.width_px, size.height_px] for size in checkpoint.sizes],
        "defaultSize": settings.api.default_size,
        "schedulers": [
            {"name": name, "solver": entry.solver, "sigmas": entry.schedule, "status": entry.status}
            for name, entry in CATALOG.items()
        ],
        "accelerations": get_args(Acceleration),
        "defaultAcceleration": settings.cache.default_acceleration,
        "hasFixedSteps": checkpoint.default_steps is not None,
        "steps": checkpoint.own_steps,
        "guidance": checkpoint.own_guidance,
        "takesNegativePrompt": not checkpoint.is_distilled,
        "rewrites": checkpoint.template == "instruct",
        "maxInputImages": state.tasks.max_input_images,
        "maxPrompt": MAX_PROMPT,
        "bounds": {name: bounds((name,)) for name in _BOUNDED},
        "about": vocabulary.about if vocabulary else "",
        "vocabulary": [group.model_dump() for group in vocabulary.groups] if vocabulary else None,
        "examples": vocabulary.examples if vocabulary else EXAMPLES,
    }


def _send(request: Request, file: PageFile) -> Response:
    headers = {**HEADERS, "ETag": file.etag}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
