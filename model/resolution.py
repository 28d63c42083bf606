"""Image sizes (aspect-ratio buckets) that a checkpoint was trained on. Free of torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from model.errors import ConfigError, UnsupportedSizeError

# The API offers the buckets whose sides are base +- 8 steps: 17 of the 33.
# Source: the parameter page of runware:180@1 and the official ResolutionGroup(1024).
NUM_OFFERED = 17

# Instruct checkpoints have four more ratio tokens, for the shapes of screens and photographs.
# Source: `image_processor.py` of the Instruct checkpoints, (height, width) in the tokens' order.
NUM_BASE_RATIOS = 33
EXTRA_SIDES = ((1024, 768), (1280, 720), (768, 1024), (720, 1280))


@dataclass(frozen=True, slots=True)
class Size:
    """One trained image size; `index` is the number in its `<img_ratio_i>` token."""

    index: int
    width_px: int
    height_px: int

    def __str__(self) -> str:
        return f"{self.width_px}x{self.height_px}"


def list_sizes(base_size: int, num_ratios: int = NUM_BASE_RATIOS) -> tuple[Size, ...]:
    """Return the trained sizes around base_size x base_size, widest first, then any extra ones.

    Each step trades one sixteenth of the base from one side to the other, until one side is
    halved and the other doubled. `num_ratios` is how many ratio tokens the checkpoint has.

    Raises:
        ConfigError: no known checkpoint has so many.
    """
    extra = EXTRA_SIDES[: max(0, num_ratios - NUM_BASE_RATIOS)]
    if NUM_BASE_RATIOS + len(extra) != num_ratios or 0 < len(extra) < len(EXTRA_SIDES):
        raise ConfigError(
            f"the tokenizer has {num_ratios} tokens <img_ratio_i>; "
            f"{NUM_BASE_RATIOS} or, of Instruct, {NUM_BASE_RATIOS + len(EXTRA_SIDES)} are known"
        )
    step = base_size // 16
    shortest, longest = base_size // 2, base_size * 2
    tall = [(base_size, base_size)]  # (height, width)
    while tall[-1] != (longest, shortest):
        height, width = tall[-1]
        tall.append((min(height + step, longest), max(width - step, shortest)))
    wide = [(width, height) for height, width in reversed(tall[1:])]
    sides = [*wide, *tall, *extra]
    return tuple(Size(i, width, height) for i, (height, width) in enumerate(sides))


def list_offered_sizes(base_size: int) -> tuple[Size, ...]:
    """Return the sizes that the API accepts, the middle ones, widest first."""
    sizes = list_sizes(base_size)
    start = (len(sizes) - NUM_OFFERED) // 2
    return sizes[start : start + NUM_OFFERED]


def nearest_size(sizes: Sequence[Size], height: float, width: float) -> Size:
    """Return the size whose height/width is nearest to the one given; the first wins a tie.

    Raises:
        UnsupportedSizeError: a side is not positive.
    """
    if not (height > 0 and width > 0):
        raise UnsupportedSizeError(
            f"an image of height {height} and width {width} does not exist; both must be positive"
        )
    return min(sizes, key=lambda size: abs(size.height_px / size.width_px - height / width))


def find_size(sizes: Sequence[Size], width_px: int, height_px: int) -> Size:
    """Return the size with exactly these sides.

    Raises:
        UnsupportedSizeError: there is none; the message names the nearest one.
    """
    for size in sizes:
        if (size.width_px, size.height_px) == (width_px, height_px):
            return size
    hint = ""
    if width_px > 0 and height_px > 0:
        hint = f"; the nearest shape is {nearest_size(sizes, height_px, width_px)}"
    raise UnsupportedSizeError(f"{width_px}x{height_px} px is not supported{hint}")
