"""Listening sockets: addresses, free ports, and ports that are taken."""

import socket
from contextlib import ExitStack

import pytest

from server.listening import listen
from server.settings import SettingsError


def test_a_client_waits_until_the_server_serves() -> None:
    with ExitStack() as held:
        (one,) = [held.enter_context(s) for s in listen("127.0.0.1", 0)]
        client = held.enter_context(socket.create_connection(one.getsockname(), timeout=5))
        client.sendall(b"early")


def test_every_address_of_a_host_has_the_same_free_port() -> None:
    with ExitStack() as held:
        sockets = [held.enter_context(s) for s in listen("localhost", 0)]
        ports = {s.getsockname()[1] for s in sockets}
        assert len(ports) == 1
        assert 0 not in ports


def test_a_port_that_is_taken_is_refused_by_its_number() -> None:
    with ExitStack() as held:
        (one,) = [held.enter_context(s) for s in listen("127.0.0.1", 0)]
        port = one.getsockname()[1]
        with pytest.raises(
            SettingsError, match=rf"port {port} of 127\.0\.0\.1 cannot be had.*--port"
        ):
            listen("127.0.0.1", port)


def test_a_host_without_an_address_is_refused_by_its_name() -> None:
    with pytest.raises(SettingsError, match=r"'no such host' has no address"):
        listen("no such host", 0)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"203\.0\.113\.1 cannot be had"):
        listen("203.0.113.1", 0)
