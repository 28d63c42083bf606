"""Requests and frames of both transports: their tasks, key, diagnostics and base URL."""

import json
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from server.api.state import State
from server.runware.errors import TaskError


def parse_tasks(body: bytes | str) -> list[object]:
    """Return the tasks of a request body or frame; a lone object is one task.

    Raises:
        TaskError: it is not JSON, or holds no task.
    """
    value = parse_json(body)
    tasks = value if isinstance(value, list) else [value]
    if not tasks:
        message = "The array of tasks is empty; send at least one task."
        raise TaskError("arrayTooSmall", message, details={"type": "array"})
    return tasks


def parse_json(body: bytes | str) -> object:
    """Return the value of a request body or frame.

    Raises:
        TaskError: it is not JSON, or holds half of a surrogate pair.
    """
    try:
        value: object = json.loads(body, parse_constant=_refuse_constant)
        if ("\\u" if isinstance(body, str) else b"\\u") in body:  # type: ignore[operator]
            json.dumps(value, ensure_ascii=False).encode()  # fails on half a surrogate pair
    except (ValueError, RecursionError) as e:
        reason = f"The request is not valid JSON: {_reason(e)}."
        raise TaskError("invalidJSON", reason, details={"type": "array"}) from None
    return value


async def wants_diagnostics(connection: HTTPConnection) -> bool:
    """Return whether a client wants diagnostics with its results, by header or query."""
    values = (connection.headers.get("x-diagnostics"), connection.query_params.get("diagnostics"))
    return any(value in ("1", "true") for value in values)


async def is_dry_run(connection: HTTPConnection) -> bool:
    """Return whether tasks are checked and priced only, by header or query.

    Source: wire specification 1.4, and `dryRun` of the official JavaScript client.
    """
    values = (
        connection.headers.get("x-runware-dry-run"),
        connection.query_params.get("dryRun"),
    )
    return any(value in ("1", "true") for value in values)


def bearer_key(header: str | None) -> str | None:
    """Return the key of an Authorization header."""
    return header[7:].strip() if header and header.lower().startswith("bearer ") else None


async def public_base_url(connection: HTTPConnection, state: State) -> str:
    """Return the address under which image URLs are given out."""
    own_url = connection.base_url.replace(
        scheme={"ws": "http", "wss": "https"}.get(connection.url.scheme, connection.url.scheme)
    )
    return state.settings.server.public_url.rstrip("/") or str(own_url).rstrip("/")


BaseUrl = Annotated[str, Depends(public_base_url)]
IsDryRun = Annotated[bool, Depends(is_dry_run)]
WantsDiagnostics = Annotated[bool, Depends(wants_diagnostics)]


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    if isinstance(error, UnicodeEncodeError):
        return "it holds half of a surrogate pair"
    return str(error)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")
