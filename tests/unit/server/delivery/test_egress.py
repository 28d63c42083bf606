"""The guarded door, with a real listener on loopback."""

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from server.delivery.addresses import Address
from server.delivery.egress import Egress, EgressError, OutgoingRequest
from server.settings import EgressSettings

LOOPBACK = EgressSettings(allowed_networks=("127.0.0.0/8",), timeout_s=2)


@asynccontextmanager
async def listener(answer: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Answer every connection with the same bytes; yields the port and what was sent."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (
                int(x.split(b":")[1])
                for x in head.split(b"\r\n")
                if x.lower().startswith(b"content-length")
            ),
            0,
        )
        heard.append(head + await reader.readexactly(length))
        writer.write(answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], heard


def outgoing(method: str, url: str, body: bytes, content_type: str) -> OutgoingRequest:
    return OutgoingRequest(method=method, url=url, body=body, content_type=content_type)


async def send(settings: EgressSettings, url: str) -> None:
    egress = Egress(settings)
    try:
        await egress.send(outgoing("PUT", url, b"image", "image/png"))
    finally:
        await egress.close()


def test_bytes_arrive_with_their_type_and_the_query_verbatim() -> None:
    async def scenario() -> bytes:
        async with listener(b"HTTP/1.1 204 No Content\r\n\r\n") as (port, heard):
            await send(LOOPBACK, f"http://localhost:{port}/a%20b?X-Signature=a%2Fb+c&x")
            return heard[0]

    sent = asyncio.run(scenario())
    assert sent.startswith(b"PUT /a%20b?X-Signature=a%2Fb+c&x HTTP/1.1\r\n")
    assert b"\r\nhost: localhost:" in sent.lower()
    assert b"content-type: image/png" in sent.lower()
    assert sent.endswith(b"\r\n\r\nimage")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/x",
        "http://localhost:9/x",
        "http://[::1]:9/x",
        "http://[::ffff:127.0.0.1]:9/x",
        "http://10.0.0.1/x",
        "http://192.168.1.1/x",
        "http://169.254.169.254/latest/meta-data",
        "http://[64:ff9b::a9fe:a9fe]/x",
        "http://[2002:7f00:1::]/x",
        "http://168.63.129.16/x",
        "http://0.0.0.0/x",
        "http://2130706433/x",
        "http://0x7f.1/x",
        "ftp://example.com/x",
        "file:///etc/passwd",
        "http:///x",
        "http://127.0.0.1:99999/x",
        "http://[half/x",
    ],
)
def test_places_inside_are_closed_and_not_tried_again(url: str) -> None:
    with pytest.raises(EgressError) as caught:
        asyncio.run(send(EgressSettings(), url))
    assert not caught.value.is_worth_retrying


async def to_loopback(host: str, port: int) -> list[Address]:
    return [ipaddress.IPv4Address("127.0.0.1")]


def test_a_name_that_also_stands_elsewhere_in_the_url_is_replaced_only_as_the_host() -> None:
    async def scenario() -> bytes:
        async with listener(b"HTTP/1.1 204 No Content\r\n\r\n") as (port, heard):
            egress = Egress(LOOPBACK, look_up=to_loopback)
            await egress.send(outgoing("POST", f"http://h:{port}/h?h", b"x", "text/plain"))
            await egress.close()
            return heard[0]

    sent = asyncio.run(scenario())
    assert sent.startswith(b"POST /h?h HTTP/1.1\r\n")
    assert b"host: h:" in sent.lower()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n",
        b"what?\r\n\r\n",
        b"",
    ],
)
def test_anything_but_2xx_is_an_error_worth_another_try(answer: bytes) -> None:
    async def scenario() -> int:
        async with listener(answer) as (port, heard):
            with pytest.raises(EgressError) as caught:
                await send(LOOPBACK, f"http://127.0.0.1:{port}/")
            assert caught.value.is_worth_retrying
            return len(heard)

    assert asyncio.run(scenario()) == 1  # a redirect is not followed


def test_a_silent_peer_is_given_up_in_time() -> None:
    async def scenario() -> None:
        is_gone = asyncio.Event()

        async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()  # until the other side gives up
            writer.close()
            await writer.wait_closed()
            is_gone.set()

        async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            settings = LOOPBACK.model_copy(update={"timeout_s": 0.3})
            with pytest.raises(EgressError, match="did not answer"):
                await send(settings, f"http://127.0.0.1:{port}/")
            await is_gone.wait()

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_an_image_is_fetched_whole_uncompressed_and_without_cookies() -> None:
    """Hosts of two clients may share an address: what one sets must not reach the other."""
    answer = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=secret\r\nContent-Length: 5\r\n\r\nimage"

    async def scenario() -> tuple[bytes, list[bytes]]:
        egress = Egress(LOOPBACK)
        async with listener(answer) as (port, heard):
            await egress.fetch(f"http://localhost:{port}/a?b=%2F", 5, 2.0)
            content = await egress.fetch(f"http://127.0.0.1:{port}/", 5, 2.0)
            await egress.close()
            return content, heard

    content, heard = asyncio.run(scenario())
    assert content == b"image"
    assert heard[0].startswith(b"GET /a?b=%2F HTTP/1.1\r\n")
    assert b"accept-encoding: identity\r\n" in heard[0].lower()
    assert b"cookie" not in b"".join(heard).lower()
    assert b"content-type" not in b"".join(heard).lower()


@pytest.mark.parametrize("answer", [b"", b"Content-Length: 6\r\n"])
def test_an_image_that_is_too_long_is_not_read_to_its_end(answer: bytes) -> None:
    async def scenario() -> None:
        egress = Egress(LOOPBACK)
        async with listener(b"HTTP/1.1 200 OK\r\n" + answer + b"\r\nimages") as (port, _):
            try:
                with pytest.raises(EgressError, match="more than the 5 bytes"):
                    await egress.fetch(f"http://localhost:{port}/", 5, 2.0)
            finally:
                await egress.close()

    asyncio.run(scenario())
