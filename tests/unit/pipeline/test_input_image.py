"""Input images that cannot be used are refused by name, before their pixels are decoded."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from model.resolution import list_sizes
from pipeline.input_image import (
    MAX_PIXELS,
    InputImageError,
    check_input_image,
    fit_image,
    plan_fit,
    read_input_image,
    verify_input_image,
)


def encoded(mode: str = "RGB", size: tuple[int, int] = (40, 30), form: str = "PNG") -> bytes:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8))
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, form)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that promises a size and holds no pixels."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def animated(form: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 120, 240)]
    buffer = io.BytesIO()
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def saved(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


REFUSED = {
    "no bytes": (b"", "not readable as an image"),
    "text": (b"hello", "not readable as an image"),
    "a document": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "not readable as an image"),
    "SVG": (b'<?xml version="1.0"?>\n<SVG xmlns="x"/>', "SVG"),
    "another format": (saved(Image.new("RGB", (8, 8)), "TIFF"), "JPEG, PNG, WEBP"),
    "a bomb": (png_header(MAX_PIXELS // 5000 + 1, 5000), "pixels"),
    "a bomb that Pillow warns of": (png_header(10_000, 10_000), "pixels"),
    "a bomb that Pillow refuses": (png_header(60_000, 60_000), "pixels"),
    "a line": (png_header(2000, 1), "50 times"),
    "an animated GIF": (animated("GIF"), "animated GIF"),
    "an animated WEBP": (animated("WEBP"), "animated WEBP"),
    "an animated PNG": (animated("PNG"), "animated PNG"),
    "a JPEG of many scans": (b"\xff\xd8" + 101 * b"\xff\xda\0\2", "101 scans"),
    "16 bits": (saved(Image.new("I;16", (8, 8))), "8 bits"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_image_that_cannot_be_used_is_refused_by_its_header(case: str) -> None:
    data, message = REFUSED[case]
    for read in (check_input_image, read_input_image, verify_input_image):
        with pytest.raises(InputImageError, match=message):
            read(data, "referenceImages[0]")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_file_that_is_cut_short_is_refused(form: str) -> None:
    data = encoded(form=form, size=(90, 80))
    for read in (read_input_image, verify_input_image):
        with pytest.raises(InputImageError, match="the second image"):
            read(data[: len(data) * 2 // 3], "the second image")


def test_damaged_bytes_are_refused_and_never_another_error() -> None:
    rng = np.random.default_rng(1)
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        whole = encoded(form=form)
        for _ in range(60):
            damaged = bytearray(whole)
            for position in rng.integers(0, len(whole), 6):
                damaged[position] = int(rng.integers(256))
            with contextlib.suppress(InputImageError):
                assert read_input_image(bytes(damaged)).mode == "RGB"


def test_alpha_is_dropped_and_what_a_phone_stored_turned_is_turned_back() -> None:
    image = Image.new("RGBA", (30, 20), (10, 200, 30, 0))
    assert read_input_image(saved(image)).getpixel((3, 3)) == (10, 200, 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, "JPEG", exif=exif)
    assert check_input_image(buffer.getvalue()) == (30, 20)
    assert read_input_image(buffer.getvalue()).size == (20, 30)


def test_a_still_of_each_format_is_read() -> None:
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        assert read_input_image(encoded(form=form)).size == (40, 30)
        for size in ((40, 30), (3, 2)):
            assert verify_input_image(encoded(form=form, size=size)) == size


def test_the_longest_image_that_is_read_fits_in_memory_while_it_is_scaled() -> None:
    size = list_sizes(1024)[0]
    fit = plan_fit(50, 1, size, is_stretched=False)
    assert fit.scaled_wh[0] * fit.scaled_wh[1] * 3 < 80e6
    assert fit_image(Image.new("RGB", (50, 1)), fit).shape == (512, 2048, 3)
