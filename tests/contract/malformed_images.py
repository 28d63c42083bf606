"""Input images that cannot be used, as clients send them, and what is said of each."""

import base64
import io
import struct
import zlib
from dataclasses import dataclass, field

from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the host of an image's URL answers."""

    reason: str
    status: int = 200
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    is_silent: bool = False


def in_base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def good_image(form: str = "PNG") -> bytes:
    """Return an image with something in it, so that half a file lacks some of it."""
    return saved(Image.effect_mandelbrot((120, 90), (-2, -1, 1, 1), 20).convert("RGB"), form)


def animated(form: str, num_frames: int = 3) -> bytes:
    frames = [Image.new("RGB", (8, 8), (90 * i % 256, i // 256, 99)) for i in range(num_frames)]
    return saved(frames[0], form, save_all=True, append_images=frames[1:])


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*chunks: tuple[bytes, bytes], width: int = 8, height: int = 8, depth: int = 8) -> bytes:
    """Return a PNG with these chunks behind its header."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in (header, *chunks))


def cut(form: str) -> bytes:
    content = good_image(form)
    return content[: len(content) // 2]


def with_byte(content: bytes, position: int, byte: int) -> bytes:
    return content[:position] + bytes([byte]) + content[position + 1 :]


EMPTY = zlib.compress(b"")
SVG = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"><rect/></svg>'
HTML = b"\n<!DOCTYPE html><html><body>Not found</body></html>"
DAMAGED = "damaged or cut short"
UNREADABLE = "not readable as an image"

FILES: dict[str, tuple[bytes, str]] = {
    "no bytes": (b"", "empty, 0 bytes"),
    "one byte": (b"\x89", UNREADABLE),
    "words": (b"hello, these are words", UNREADABLE),
    "HTML": (HTML, "HTML page"),
    "JSON": (b'{"error": "not found"}', UNREADABLE),
    "SVG": (SVG, "SVG"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj", UNREADABLE),
    "ZIP": (b"PK\x03\x04" + bytes(60), UNREADABLE),
    "TIFF": (saved(Image.new("RGB", (8, 8)), "TIFF"), UNREADABLE),
    "ICO": (saved(Image.new("RGB", (16, 16)), "ICO"), UNREADABLE),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), UNREADABLE),
    "PNG cut short": (cut("PNG"), DAMAGED),
    "JPEG cut short": (cut("JPEG"), DAMAGED),
    "WEBP cut short": (cut("WEBP"), UNREADABLE),
    "GIF cut short": (cut("GIF"), DAMAGED),
    "BMP cut short": (cut("BMP"), DAMAGED),
    "PNG's signature alone": (b"\x89PNG\r\n\x1a\n", UNREADABLE),
    "PNG's header alone": (png(), UNREADABLE),
    "JPEG's first marker alone": (b"\xff\xd8\xff", UNREADABLE),
    "PNG with a wrong checksum": (with_byte(good_image(), 30, 1), UNREADABLE),
    "PNG of no zlib stream": (png((b"IDAT", b"rubbish" * 9), (b"IEND", b"")), DAMAGED),
    "PNG without pixels": (png((b"IDAT", EMPTY), (b"IEND", b"")), DAMAGED),
    "PNG of no width": (png((b"IDAT", EMPTY), width=0), UNREADABLE),
    "PNG of 16 bits": (saved(Image.new("I;16", (8, 8))), "8 bits"),
    "PNG whose words unpack to 20 MB": (
        png((b"zTXt", b"a\0\0" + zlib.compress(bytes(20_000_000))), (b"IDAT", EMPTY)),
        UNREADABLE,
    ),
    "PNG that promises 100 million pixels": (
        png((b"IDAT", EMPTY), width=10_000, height=10_000),
        "pixels",
    ),
    "PNG that promises 4 billion pixels": (
        png((b"IDAT", EMPTY), width=65_535, height=65_535),
        "pixels",
    ),
    "BMP that promises 4 billion pixels": (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 60, 0, 0, 54, 40, 65_000, 65_000, 1, 24, 0, 0, 0, 0,
                            0, 0),
        "pixels",
    ),
    "GIF of no sides": (b"GIF89a" + bytes(7) + b";", UNREADABLE),
    "a line": (saved(Image.new("RGB", (1, 900))), "50 times"),
    "animated GIF": (animated("GIF"), "animated GIF"),
    "animated WEBP": (animated("WEBP"), "animated WEBP"),
    "animated PNG": (animated("PNG"), "animated PNG"),
    "GIF of 700 frames": (animated("GIF", 700), "animated GIF"),
    "JPEG of 300 scans": (
        good_image("JPEG")[:-2] + 300 * b"\xff\xda\0\x08\1\1\0\0\x3f\0" + b"\xff\xd9",
        "scans",
    ),
    "more bytes than are taken": (bytes(50_001), "at most 50000 are taken"),
    "far more bytes than are taken": (bytes(60_000), "at most 50000 are taken"),
}  # fmt: skip

# What a client sends, and a part of the reason that it gets.
TEXTS: dict[str, tuple[object, str]] = {
    "an empty text": ("", "It must be"),
    "a number": (5, "It must be"),
    "null": (None, "It must be"),
    "an object": ({"image": "x"}, "It must be"),
    "a list": (["x"], "It must be"),
    "a file's name": ("cat.png", "not base64 text"),
    "a path": ("/etc/passwd", "not base64 text"),
    "a URL of a file": ("file:///etc/passwd", "Only http and https"),
    "an FTP URL": ("ftp://example.com/cat.png", "Only http and https"),
    "a URL without a host": ("http://", "only http and https URLs"),
    "a URL with a wrong port": ("http://127.0.0.1:99999/cat.png", "the URL is not valid"),
    "a URL with half an address": ("http://[::1/cat.png", "the URL is not valid"),
    "a host that does not listen": ("http://127.0.0.1:9/cat.png", "did not answer"),
    "a private network": ("http://10.0.0.1/cat.png", "egress.allowed_networks"),
    "a cloud's metadata": ("http://169.254.169.254/latest/meta-data", "allowed_networks"),
    "the same in IPv6": ("http://[::ffff:169.254.169.254]/cat.png", "allowed_networks"),
    "an unknown UUID": ("9f9aa9c4-7b8c-4b7e-8d3e-0a0c4b8f2a11", "No image is kept here"),
    "an unknown image of this server": (
        "http://example.test:8000/images/9f9aa9c4-7b8c-4b7e-8d3e-0a0c4b8f2a11.png",
        "No image is kept here",
    ),
    "an address of this server that is no image": (
        "http://example.test:8000/images/../metrics",
        "No image is kept here",
    ),
    "a data URI without anything": ("data:", "must begin like"),
    "a data URI without a comma": ("data:image/png;base64", "must begin like"),
    "a data URI that is not base64": ("data:image/png,%89PNG", "must begin like"),
    "a data URI of SVG": ("data:image/svg+xml;utf8,<svg/>", "SVG"),
    "a data URI without bytes": ("data:image/png;base64,", "empty, 0 bytes"),
    "signs that base64 lacks": ("data:image/png;base64,@@@@", "not base64 text"),
    "base64 without its padding": (in_base64(good_image()).rstrip("=")[:-1], "not base64 text"),
    **{name: (in_base64(content), reason) for name, (content, reason) in FILES.items() if content},
}

ANSWERS: dict[str, Answer] = {
    "404": Answer(status=404, reason="answered 404"),
    "403": Answer(status=403, reason="answered 403"),
    "500": Answer(status=500, reason="answered 500"),
    "a redirect into a private network": Answer(
        status=302, headers={"location": "http://169.254.169.254/"}, reason="redirects are not"
    ),
    "HTML": Answer(content=HTML, reason="HTML page"),
    "nothing": Answer(reason="empty, 0 bytes"),
    "half an image": Answer(content=cut("JPEG"), reason=DAMAGED),
    "more bytes than are taken": Answer(content=bytes(50_001), reason="50000 bytes"),
    "a promise of more bytes": Answer(
        content=b"", headers={"content-length": "99999999999"}, reason="50000 bytes"
    ),
    "fewer bytes than promised": Answer(
        content=good_image(), headers={"content-length": "40000"}, reason="did not answer"
    ),
    "compressed bytes": Answer(
        content=zlib.compress(good_image()),
        headers={"content-encoding": "deflate"},
        reason="compressed",
    ),
    "silence": Answer(is_silent=True, reason="did not answer (TimeoutError)"),
}
