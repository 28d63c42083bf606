"""Image files with parameters and the mark of generation: read back, with the same pixels."""

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.encode import encode_image
from pipeline.request import ImageFormat
from server.delivery.file_metadata import (
    EXIF_IFD,
    KEYWORD,
    SOURCE_TYPE,
    USER_COMMENT,
    embed,
)

FORMATS: tuple[ImageFormat, ...] = ("PNG", "JPG", "WEBP")
PARAMETERS = {"positivePrompt": 'a "red" fox, 狐 🦊', "seed": 2**60, "steps": 20}
PIXELS = np.random.default_rng(3).integers(0, 256, (33, 50, 3), dtype=np.uint8)


def parameters_of(encoded: bytes) -> dict[str, Any] | None:
    with Image.open(io.BytesIO(encoded)) as image:
        if image.format == "PNG":
            text = image.info.get(KEYWORD)
        else:
            comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT)
            text = comment and comment.removeprefix(b"UNICODE\0").decode("utf-16-be")
    return json.loads(text) if text else None


def is_marked(encoded: bytes) -> bool:
    with Image.open(io.BytesIO(encoded)) as image:
        xmp = image.info.get("xmp", b"")
    assert not xmp or xmp.startswith(b"<?xpacket")
    return f'DigitalSourceType="{SOURCE_TYPE}"'.encode() in xmp


def pixels_of(encoded: bytes) -> Any:
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGBA"))


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("parameters", [None, PARAMETERS])
@pytest.mark.parametrize("marked", [False, True])
def test_a_file_has_what_is_on_and_the_same_pixels(
    image_format: ImageFormat, parameters: dict[str, Any] | None, marked: bool
) -> None:
    plain = encode_image(PIXELS, image_format, 95)
    file = embed(plain, parameters, marked)
    assert parameters_of(file) == parameters
    assert is_marked(file) == marked
    assert np.array_equal(pixels_of(file), pixels_of(plain))
    assert (file == plain) == (parameters is None and not marked)


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_compressed_pixels_are_the_same_bytes(image_format: ImageFormat) -> None:
    plain = encode_image(PIXELS, image_format, 95)
    file = embed(plain, PARAMETERS, True)
    starts = {"PNG": b"IDAT", "JPG": b"\xff\xdb", "WEBP": b"VP8 "}
    body = plain[plain.index(starts[image_format]) :]
    assert body in file


def test_an_image_with_an_alpha_channel_keeps_it() -> None:
    buffer = io.BytesIO()
    rgba = np.dstack([PIXELS, PIXELS[:, :, 0]])
    Image.fromarray(rgba, "RGBA").save(buffer, "WEBP", lossless=True, exact=True)
    file = embed(buffer.getvalue(), PARAMETERS, True)
    assert np.array_equal(pixels_of(file), rgba)
    assert parameters_of(file) == PARAMETERS


def test_long_texts_of_a_jpeg_are_shortened_to_what_it_holds() -> None:
    long = {"positivePrompt": "狐" * 40000, "negativePrompt": "blurred", "seed": 3}
    found = parameters_of(embed(encode_image(PIXELS, "JPG", 95), long, True))
    assert found is not None
    assert found["positivePrompt"] == "狐" * 20000 + "…"
    assert {**found, "positivePrompt": long["positivePrompt"]} == long
    assert parameters_of(embed(encode_image(PIXELS, "PNG", 95), long, True)) == long
    assert parameters_of(embed(encode_image(PIXELS, "WEBP", 95), long, True)) == long
