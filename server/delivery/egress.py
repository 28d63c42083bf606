"""Guarded outgoing requests: webhooks and uploads to URLs that clients name (SSRF protection).

Names are resolved once and the connection goes to the address that was checked; so a name cannot
change between check and use. Redirects are not followed. Private networks are closed unless the
settings allow them.
"""

import asyncio
import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx

from server.settings import EgressSettings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Lookup = Callable[[str, int], Awaitable[list[Address]]]


class EgressError(RuntimeError):
    """A request was refused by the guard, or did not succeed."""

    def __init__(self, message: str, *, is_worth_retrying: bool) -> None:
        super().__init__(message)
        self.is_worth_retrying = is_worth_retrying


async def look_up(host: str, port: int) -> list[Address]:
    """Return the addresses of a name.

    Raises:
        OSError: it has none.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(info[4][0]).split("%")[0]) for info in found]


class Egress:
    """Sends requests to public addresses, and to the private networks that settings allow."""

    def __init__(self, settings: EgressSettings, look_up: Lookup = look_up) -> None:
        self._settings = settings
        self._look_up = look_up
        self._allowed = [ipaddress.ip_network(network) for network in settings.allowed_networks]
        self._client = httpx.AsyncClient(
            timeout=settings.timeout_s, follow_redirects=False, trust_env=False
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def send_json(self, method: str, url: str, body: dict[str, Any]) -> None:
        """Send a JSON body; see `send`."""
        await self.send(method, url, json.dumps(body).encode(), "application/json")

    async def send(self, method: str, url: str, body: bytes, content_type: str) -> None:
        """Send bytes to a URL, whose path and query are kept verbatim.

        Raises:
            EgressError: the address is forbidden, cannot be reached, or did not answer 2xx.
        """
        parts, port = _split(url)
        address = await self._resolve(parts.hostname or "", port, parts.scheme)
        host = f"[{address}]" if address.version == 6 else str(address)
        user, at, name = parts.netloc.rpartition("@")
        start = url.index("//") + 2
        authority = f"{user}{at}{host}" + (f":{port}" if port else "")
        target = url[:start] + authority + url[start + len(parts.netloc) :]
        request = self._client.build_request(
            method,
            target,
            content=body,
            headers={"Content-Type": content_type, "Host": name},
            extensions={"sni_hostname": parts.hostname},
        )
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                response = await self._client.send(request, stream=True)
                status = response.status_code
                await response.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as e:
            raise EgressError(
                f"{parts.hostname} did not answer ({type(e).__name__})", is_worth_retrying=True
            ) from None
        if not 200 <= status < 300:
            raise EgressError(f"{parts.hostname} answered {status}", is_worth_retrying=True)

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
            if self._is_open(address):
                return address
        raise EgressError(
            f"{host} lies in a network that this server may not reach", is_worth_retrying=False
        )

    def _is_open(self, address: Address) -> bool:
        mapped = getattr(address, "ipv4_mapped", None)
        if mapped is not None:
            address = mapped
        if any(address in network for network in self._allowed):
            return True
        return address.is_global and not address.is_multicast


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
