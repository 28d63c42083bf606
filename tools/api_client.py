"""Calls of a running server, for the commands that watch, stop and load it."""

from typing import Any, cast
from urllib.parse import quote, urlsplit

import httpx

from server.runware.errors import CommandError
from server.runware.status_answer import Status

DEFAULT_URL = "http://127.0.0.1:8000"
KEY_VARIABLE = "HYIMAGE_API_KEY"
TIMEOUT_S = 20.0  # the server answers a cancel within 10 s


def base_url(url: str) -> str:
    """Return the address of a server without the `/v1` that clients of the API add.

    Raises:
        CommandError: it is no http or https address.
    """
    given = url.rstrip("/").removesuffix("/v1")
    try:
        parsed = urlsplit(given)
        is_right = parsed.scheme in ("http", "https") and bool(parsed.hostname)
        is_right &= parsed.port != 0  # reading it checks its range
    except ValueError:
        is_right = False
    if not is_right:
        raise CommandError(f"{url!r} is no address of a server; write it like {DEFAULT_URL}")
    return given


def open_client(url: str, key: str | None) -> httpx.Client:
    """Return a client of a server; proxies of the environment are not used.

    Raises:
        CommandError: the address is wrong.
    """
    return httpx.Client(
        base_url=base_url(url), headers=key_headers(key), timeout=TIMEOUT_S, trust_env=False
    )


def key_headers(key: str | None) -> dict[str, str]:
    """Return the header that carries an API key, if there is one.

    Raises:
        CommandError: no header can carry it.
    """
    if not key:
        return {}
    if not (key.isascii() and key.isprintable()):
        raise CommandError(f"the API key holds characters that no key has; see {KEY_VARIABLE}")
    return {"Authorization": f"Bearer {key}"}


def fetch_status(client: httpx.Client) -> Status:
    """Return the state of a server.

    Raises:
        CommandError: it cannot be reached, wants a key, or has no such page.
    """
    return cast(Status, call(client, "GET", "/v1/status"))


def cancel_task(client: httpx.Client, task_uuid: str) -> str:
    """Cancel a task; return how it ended: cancelled, success, failed, or cancelling if it will.

    Raises:
        CommandError: the server cannot be reached, wants a key, or does not know the task.
    """
    answer = call(client, "DELETE", f"/v1/tasks/{quote(task_uuid, safe='')}")
    return str(answer["data"][0]["status"])


def call(client: httpx.Client, method: str, path: str, body: object = None) -> dict[str, Any]:
    """Return the JSON object that a server answers.

    Raises:
        CommandError: there is none; the message says why and what to do.
    """
    address = str(client.base_url).rstrip("/")
    try:
        response = client.request(method, path, json=body)
    except httpx.HTTPError as e:
        raise CommandError(
            f"{address} cannot be reached ({reason_of(e)}); start a server there with "
            "`hyimage serve`, or name the address of another"
        ) from None
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if response.is_success and isinstance(answer, dict):
        return answer
    raise CommandError(_refusal(address, path, response.status_code, answer))


def reason_of(error: Exception) -> str:
    """Return what an error of the network says, or its kind if it says nothing."""
    return str(error) or type(error).__name__


def _refusal(address: str, path: str, status: int, answer: Any) -> str:
    """Return a sentence about an answer that is not the one wanted."""
    try:
        error = answer["errors"][0]
        code, message = str(error["code"]), str(error["message"])
    except (TypeError, KeyError, IndexError):
        return (
            f"{address}{path} answered with status {status} and not as a hyimage server of this "
            "version does; check the address and the server's version"
        )
    if code == "missingApiKey":
        return f"{address} wants an API key: set {KEY_VARIABLE} or give --key"
    if code == "invalidApiKey":
        return f"{address} does not accept this API key; `hyimage keys list` there names the valid"
    return f"{address}: {code}: {message}"
