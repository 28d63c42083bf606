"""Listening sockets, bound before anything else happens, so that a second server ends here."""

import errno
import socket
from contextlib import ExitStack

from server.settings import SettingsError

BACKLOG = 2048  # connections that wait while the server starts; uvicorn's own number


def listen(host: str, port: int) -> list[socket.socket]:
    """Return a listening socket for every address of a host; clients wait until it is served.

    Port 0 is a free one, the same for all addresses.

    Raises:
        SettingsError: the host has no address, or the port cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as e:
        raise SettingsError(f"server.host {host!r} has no address here ({e})") from None
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    with ExitStack() as opened:
        sockets: list[socket.socket] = []
        for family, address in addresses:
            one = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
            wanted = port or (sockets[0].getsockname()[1] if sockets else 0)
            try:
                _listen(one, (address[0], wanted, *address[2:]))
            except OSError as e:
                if e.errno == errno.EADDRNOTAVAIL and len(addresses) > 1:
                    continue  # for example ::1 of localhost where there is no IPv6
                raise SettingsError(
                    f"port {wanted} of {address[0]} cannot be had ({e.strerror}): stop what "
                    "listens there, or give another server.port or --port"
                ) from None
            sockets.append(one)
        if not sockets:
            raise SettingsError(f"none of the addresses of server.host {host!r} is this machine's")
        opened.pop_all()
    return sockets


def _listen(one: socket.socket, address: tuple[str | int, ...]) -> None:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart need not wait
    if one.family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    one.bind(address)
    # Not only bound: two sockets may be bound to one port as long as neither listens.
    one.listen(BACKLOG)
    one.setblocking(False)
