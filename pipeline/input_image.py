"""Input images: from the bytes of a file to the pixels that the VAE gets. Free of torch.

A file is checked by its header before anything is decoded. The vision tower gets the upright image
itself (`model/vision.py`), not what is cropped or stretched here for the VAE.
"""

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from model.errors import ModelError
from model.resolution import Size, nearest_size

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
# Of one request.
# Source: "up to 3" in the Instruct release's README; four large ones do not fit 22800 positions.
MAX_IMAGES = 3
# Upright and as stored, at three bytes a pixel, an image takes 240 MB while it is turned.
MAX_PIXELS = 40_000_000
# Scaling precedes the crop: at base 1024, an image of this ratio becomes 77 MB on the way.
MAX_RATIO = 50
# Below it `align` leaves the generated size as it is.
# Source: `postprocess_outputs` of the Instruct release's image_processor.py.
MIN_RATIO_DIFFERENCE = 0.01

# Each scan of a progressive JPEG goes over the whole image, and a thousand empty ones fit in 10 kB.
# Source: libjpeg's own progressive script has 10; embedded previews have scans of their own.
MAX_SCANS = 100
_SCAN = b"\xff\xda"  # in coded data 0xff is followed by 0

_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, struct.error, IndexError, KeyError)


class InputImageError(ModelError):
    """An input image cannot be used."""

    code = "invalidInputImage"


@dataclass(frozen=True, slots=True)
class Fit:
    """How an image is brought to a trained size: scaled, then cut to the box if there is one."""

    scaled_wh: tuple[int, int]
    box_ltrb: tuple[int, int, int, int] | None


def read_input_image(data: bytes, name: str = "the input image") -> Image.Image:
    """Return the upright RGB image of a file; alpha is dropped, not composed onto a background.

    Raises:
        InputImageError: it is no image, of another format, animated, too large, too narrow or
            damaged.
    """
    with _open(data, name) as image:
        _check_header(image, name)
        try:
            image.load()
            upright = ImageOps.exif_transpose(image)
            return upright if upright.mode == "RGB" else upright.convert("RGB")
        except (Image.DecompressionBombError, *_DAMAGE) as e:
            raise _damaged(name, e) from None


def check_input_image(data: bytes, name: str = "the input image") -> tuple[int, int]:
    """Return the width and height in the header of a file; nothing is decoded.

    Raises:
        InputImageError: as `read_input_image`, but damage behind the header is not seen.
    """
    with _open(data, name) as image:
        _check_header(image, name)
        return image.size


def verify_input_image(data: bytes, name: str = "the input image") -> tuple[int, int]:
    """Return the width and height of a file whose pixels could all be decoded.

    Pixels are thrown away; a JPEG's are decoded at an eighth of its sides, which reads every byte.

    Raises:
        InputImageError: as `read_input_image`.
    """
    with _open(data, name) as image:
        _check_header(image, name)
        width, height = image.size
        try:
            image.draft(None, (max(1, width // 8), max(1, height // 8)))
            image.load()
        except (Image.DecompressionBombError, *_DAMAGE) as e:
            raise _damaged(name, e) from None
        return width, height


def _damaged(name: str, fault: Exception) -> InputImageError:
    return InputImageError(f"{name} is damaged or cut short ({fault}); send it again")


def _open(data: bytes, name: str) -> Image.Image:
    if b"<svg" in data[:1024].lower():
        raise InputImageError(f"{name} is SVG, which is not pixels; send it as PNG")
    if data.startswith(b"\xff\xd8") and data.count(_SCAN) > MAX_SCANS:
        raise InputImageError(
            f"{name} is a JPEG of {data.count(_SCAN)} scans, at most {MAX_SCANS} are read; save it "
            "as a baseline JPEG or PNG"
        )
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputImageError(
            f"{name} has more than {MAX_PIXELS} pixels; send it smaller"
        ) from None
    except _DAMAGE:
        raise InputImageError(
            f"{name} ({len(data)} bytes) is not readable as an image; "
            f"send one of: {', '.join(FORMATS)}"
        ) from None


def _check_header(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputImageError(
            f"{name} has {width}x{height} = {width * height} pixels, at most {MAX_PIXELS} are "
            "read; send it smaller"
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise InputImageError(
            f"{name} is {width}x{height}; one side may be at most {MAX_RATIO} times the other, "
            "so cut it"
        )
    try:
        # Not `n_frames`: a GIF's are counted one by one, and a million of them take minutes.
        is_animated = getattr(image, "is_animated", False)
    except _DAMAGE as e:
        raise _damaged(name, e) from None
    # MPO is what phones write: a JPEG with further views of the same scene behind it.
    if is_animated and image.format != "MPO":
        raise InputImageError(f"{name} is an animated {image.format}; send the frame that is meant")
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise InputImageError(
            f"{name} has pixels of mode {image.mode}, more than 8 bits a channel; send 8 bits"
        )


def plan_fit(width: int, height: int, size: Size, *, is_stretched: bool) -> Fit:
    """Return how an upright image of these sides is brought to a trained size.

    It covers the size and is cut around its centre, or is stretched to it, ratio not kept. Halves
    are rounded to the even neighbour, as the official releases round them.

    Source: `resize_and_crop` of both releases' image_processor.py.
    """
    if is_stretched:
        return Fit((size.width_px, size.height_px), None)
    if height / width < size.height_px / size.width_px:
        scaled = (round(size.height_px / height * width), size.height_px)
    else:
        scaled = (size.width_px, round(size.width_px / width * height))
    left = round((scaled[0] - size.width_px) / 2)
    top = round((scaled[1] - size.height_px) / 2)
    return Fit(scaled, (left, top, left + size.width_px, top + size.height_px))


def fit_image(image: Image.Image, fit: Fit) -> npt.NDArray[np.uint8]:
    """Return the pixels of an upright image for the VAE. Shapes: -> rgb_yx3 uint8."""
    scaled = image.resize(fit.scaled_wh, Image.Resampling.LANCZOS)
    return np.asarray(scaled if fit.box_ltrb is None else scaled.crop(fit.box_ltrb))


def aligned_size(
    upright_wh: Sequence[tuple[int, int]], size: Size, sizes: Sequence[Size], base_size: int
) -> tuple[int, int]:
    """Return the width and height to which a generated image of `size` is resized by `align`.

    They have the ratio of the first input image whose trained size is the generated one's, and the
    base's number of pixels.

    Source: `postprocess_outputs` of the Instruct release's image_processor.py.
    """
    for width, height in upright_wh:
        if nearest_size(sizes, height, width).index != size.index:
            continue
        if abs(height / width - size.height_px / size.width_px) < MIN_RATIO_DIFFERENCE:
            break
        scale = (base_size * base_size / (width * height)) ** 0.5
        return round(width * scale), round(height * scale)
    return size.width_px, size.height_px


def resize_pixels(
    pixels_yx3: npt.NDArray[np.uint8], width_px: int, height_px: int
) -> npt.NDArray[np.uint8]:
    """Return an image at other sides. Shapes: pixels_yx3 uint8 -> pixels_yx3 uint8."""
    image = Image.fromarray(pixels_yx3, "RGB")
    return np.asarray(image.resize((width_px, height_px), Image.Resampling.LANCZOS))
