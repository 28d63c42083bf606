"""Image sizes as the reference writes them: height first, and only the ratio counts."""

import re
from collections.abc import Sequence

from model.errors import UnsupportedSizeError
from model.resolution import Size, nearest_size

_PAIR = re.compile(r"(\d+)[x:](\d+)")
_RATIO = re.compile(r"<img_ratio_(\d+)>")


def parse_reference_size(value: object, sizes: Sequence[Size]) -> Size:
    """Return the trained size for "HxW", "H:W", "<img_ratio_i>" or [H, W].

    Raises:
        UnsupportedSizeError: it is none of these, or a side is not positive.
    """
    if isinstance(value, str):
        if (match := _RATIO.fullmatch(value)) and int(match[1]) < len(sizes):
            return sizes[int(match[1])]
        if match := _PAIR.fullmatch(value):
            return nearest_size(sizes, int(match[1]), int(match[2]))
    if (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(side, int) for side in value)
    ):
        return nearest_size(sizes, *value)
    raise UnsupportedSizeError(
        f"image size {value!r} is not understood; write HxW, H:W, [H, W] or "
        f"<img_ratio_0>..<img_ratio_{len(sizes) - 1}>"
    )
