"""Guarded outgoing requests to URLs that clients name: webhooks, uploads, input images (SSRF).

Names are resolved once and the connection goes to the address that was checked; so a name cannot
change between check and use. Redirects are not followed. Private networks are closed unless the
settings allow them.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from urllib.parse import SplitResult, urlsplit

import httpx

from server.delivery.addresses import Address, is_open
from server.settings import EgressSettings

Lookup = Callable[[str, int], Awaitable[list[Address]]]

# A check when a task arrives waits no longer for a name; the request itself checks again.
CHECK_TIMEOUT_S = 2.0


class EgressError(RuntimeError):
    """A request was refused by the guard, or did not succeed.

    `status` is the answer's, if there was one.
    """

    def __init__(self, message: str, *, is_worth_retrying: bool, status: int | None = None) -> None:
        super().__init__(message)
        self.is_worth_retrying = is_worth_retrying
        self.status = status


async def look_up(host: str, port: int) -> list[Address]:
    """Return the addresses of a name.

    Raises:
        OSError: it has none.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(info[4][0]).split("%")[0]) for info in found]


@dataclass(frozen=True, kw_only=True, slots=True)
class OutgoingRequest:
    """A request to a URL that a client named."""

    method: str
    url: str
    body: bytes | None = field(default=None, repr=False)
    content_type: str = ""
    headers: dict[str, str] = field(default_factory=dict)


class Egress:
    """Sends requests to public addresses, and to the private networks that settings allow."""

    def __init__(self, settings: EgressSettings, look_up: Lookup = look_up) -> None:
        self._settings = settings
        self._look_up = look_up
        self._allowed = [ipaddress.ip_network(network) for network in settings.allowed_networks]
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
        self._client = httpx.AsyncClient(
            timeout=settings.timeout_s,
            follow_redirects=False,
            trust_env=False,
            cookies=no_cookies,  # hosts of different clients may share an address
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def check(self, url: str) -> None:
        """Refuse a URL that no request may ever reach; one whose name has no address may later.

        Raises:
            EgressError: it is not an http or https URL, or its address is closed.
        """
        parts, port = _split(url)
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                await self._resolve(parts.hostname or "", port, parts.scheme)
        except TimeoutError:
            return
        except EgressError as e:
            if not e.is_worth_retrying:
                raise

    async def send(self, request: OutgoingRequest, timeout_s: float | None = None) -> None:
        """Send bytes to a URL, whose path and query are kept verbatim.

        Raises:
            EgressError: the address is forbidden, cannot be reached, or did not answer 2xx in time.
        """
        parts, port = _split(request.url)
        try:
            async with asyncio.timeout(timeout_s or self._settings.timeout_s):
                address = await self._resolve(parts.hostname or "", port, parts.scheme)
                built = self._build(request, parts, port, address)
                response = await self._client.send(built, stream=True)
                status = response.status_code
                await response.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as e:
            raise _no_answer(parts, e) from None
        if not 200 <= status < 300:
            message = f"{parts.hostname} answered {status}"
            raise EgressError(message, is_worth_retrying=True, status=status)

    async def fetch(self, url: str, max_bytes: int, timeout_s: float) -> bytes:
        """Return what a URL answers, whole and within a limit.

        Raises:
            EgressError: as `send`; or the answer is too long, compressed, or leads elsewhere.
        """
        wanted = {"Accept": "image/*", "Accept-Encoding": "identity"}
        request = OutgoingRequest(method="GET", url=url, headers=wanted)
        parts, port = _split(url)
        try:
            async with asyncio.timeout(timeout_s):
                address = await self._resolve(parts.hostname or "", port, parts.scheme)
                built = self._build(request, parts, port, address)
                response = await self._client.send(built, stream=True)
                try:
                    return await _read_within(response, parts.hostname or "", max_bytes)
                finally:
                    await response.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as e:
            raise _no_answer(parts, e) from None

    def _build(
        self, request: OutgoingRequest, parts: SplitResult, port: int | None, address: Address
    ) -> httpx.Request:
        """Return the request to a checked address, with the name in Host and in TLS."""
        host = f"[{address}]" if address.version == 6 else str(address)
        user, at, name = parts.netloc.rpartition("@")
        start = request.url.index("//") + 2
        authority = f"{user}{at}{host}" + (f":{port}" if port else "")
        kind = {"Content-Type": request.content_type} if request.content_type else {}
        target = request.url[:start] + authority + request.url[start + len(parts.netloc) :]
        return self._client.build_request(
            request.method,
            target,
            content=request.body,
            headers={**request.headers, **kind, "Host": name},
            extensions={"sni_hostname": parts.hostname},
        )

    async def _resolve(self, host: str, port: int | None, scheme: str) -> Address:
        """Return the one address that will be connected to, checked.

        Raises:
            EgressError: the name has no address, or one that is closed.
        """
        if scheme.lower() not in ("http", "https") or not host:
            raise EgressError("only http and https URLs are served", is_worth_retrying=False)
        try:
            addresses = await self._look_up(host, port or 0)
        except (OSError, UnicodeError):
            raise EgressError(f"{host} has no address", is_worth_retrying=True) from None
        for address in addresses:
            if is_open(address, self._allowed):
                return address
        raise EgressError(
            f"{host} lies in a network that this server may not reach; its operator can open it "
            "by egress.allowed_networks",
            is_worth_retrying=False,
        )


def _split(url: str) -> tuple[SplitResult, int | None]:
    """Return the parts of a URL and its port.

    Raises:
        EgressError: it is not a URL.
    """
    try:
        parts = urlsplit(url)
        return parts, parts.port
    except ValueError as e:
        raise EgressError(f"the URL is not valid ({e})", is_worth_retrying=False) from None


async def _read_within(response: httpx.Response, host: str, max_bytes: int) -> bytes:
    """Return the body of a response as it was sent.

    Raises:
        EgressError: there is none to be had, or it is longer than the limit.
    """
    status, headers = response.status_code, response.headers
    if 300 <= status < 400:
        raise EgressError(
            f"{host} answered {status}, and redirects are not followed; send the address where it "
            "leads",
            is_worth_retrying=False,
            status=status,
        )
    if not 200 <= status < 300:
        raise EgressError(f"{host} answered {status}", is_worth_retrying=True, status=status)
    if headers.get("content-encoding", "identity") != "identity":
        raise EgressError(f"{host} sent it compressed, unasked", is_worth_retrying=False)
    length, body = headers.get("content-length", ""), bytearray()
    is_too_long = length.isdecimal() and int(length) > max_bytes
    if not is_too_long:
        async for chunk in response.aiter_raw():
            body += chunk
            is_too_long = len(body) > max_bytes
            if is_too_long:
                break
    if is_too_long:
        raise EgressError(
            f"{host} sends more than the {max_bytes} bytes that are taken", is_worth_retrying=False
        )
    return bytes(body)


def _no_answer(parts: SplitResult, fault: Exception) -> EgressError:
    reason = f"{parts.hostname} did not answer ({type(fault).__name__})"
    return EgressError(reason, is_worth_retrying=True)
