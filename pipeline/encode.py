"""Image files: pixels to the bytes of a JPG, PNG or WEBP."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.request import ImageFormat

_PIL_NAMES: dict[ImageFormat, str] = {"JPG": "JPEG", "PNG": "PNG", "WEBP": "WEBP"}


def encode_image(
    pixels_yx3: npt.NDArray[np.uint8], image_format: ImageFormat, quality: int
) -> bytes:
    """Return the file's bytes. `quality` (20..99) has no effect on PNG, which is lossless."""
    buffer = io.BytesIO()
    options = {} if image_format == "PNG" else {"quality": quality}
    Image.fromarray(pixels_yx3, "RGB").save(buffer, _PIL_NAMES[image_format], **options)
    return buffer.getvalue()
