"""The backgrounds of the scenes: plain colours, and landscapes with a fixed horizon."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Colour = tuple[int, int, int]
Stops = tuple[tuple[float, Colour], ...]

PLAIN: dict[str, Colour] = {
    "red": (205, 50, 50),
    "orange": (240, 150, 60),
    "yellow": (245, 220, 90),
    "green": (95, 170, 90),
    "blue": (85, 140, 225),
    "purple": (140, 90, 185),
    "pink": (245, 170, 200),
    "white": (245, 245, 245),
    "gray": (140, 140, 145),
    "black": (28, 28, 32),
}
# Colours down the image; the second row is the ground from its hills to the lower edge.
SKIES: dict[str, Stops] = {
    "meadow": ((0.0, (110, 180, 245)), (0.65, (205, 232, 250))),
    "beach": ((0.0, (120, 200, 250)), (0.475, (215, 240, 250)), (0.48, (40, 140, 190)),
              (0.65, (80, 195, 205))),
    "desert": ((0.0, (245, 200, 120)), (0.65, (252, 232, 185))),
    "snow": ((0.0, (150, 185, 215)), (0.65, (215, 228, 238))),
    "sunset": ((0.0, (70, 45, 110)), (0.45, (220, 90, 95)), (0.8, (255, 170, 80)),
               (1.0, (255, 215, 130))),
    "night": ((0.0, (8, 10, 38)), (1.0, (40, 45, 95))),
    "sky": ((0.0, (60, 140, 235)), (1.0, (190, 225, 252))),
    "underwater": ((0.0, (90, 205, 215)), (0.5, (20, 120, 165)), (1.0, (5, 45, 95))),
}  # fmt: skip
GROUNDS: dict[str, Stops] = {
    "meadow": ((0.56, (120, 190, 80)), (1.0, (70, 140, 50))),
    "beach": ((0.62, (240, 220, 165)), (1.0, (225, 195, 130))),
    "desert": ((0.56, (215, 155, 85)), (1.0, (180, 115, 60))),
    "snow": ((0.56, (250, 252, 255)), (1.0, (222, 232, 245))),
    "underwater": ((0.85, (150, 150, 120)), (1.0, (110, 110, 95))),
}
# Mean height of the ground's edge, and how far its waves go up and down, as shares of the height.
HORIZONS: dict[str, tuple[float, float]] = {
    "meadow": (0.6, 0.035),
    "beach": (0.64, 0.012),
    "desert": (0.61, 0.045),
    "snow": (0.59, 0.03),
    "underwater": (0.9, 0.02),
}
BACKGROUNDS = (*PLAIN, *SKIES)

# Side of the tile of stars that is repeated over the night.
STAR_TILE_PX = 256
STARS_PER_TILE = 5


@lru_cache(maxsize=64)
def paint_background(name: str, width_px: int, height_px: int) -> npt.NDArray[np.uint8]:
    """Return a background, read-only. Shapes: -> rgb_yx3."""
    if name in PLAIN:
        colour = np.array(PLAIN[name], np.float32)
        bright, dark = np.clip(colour * 1.07, 0, 255), colour * 0.9
        rows_y3 = np.linspace(bright, dark, height_px, dtype=np.float32)
        image_yx3 = np.repeat(rows_y3[:, None], width_px, axis=1)
    else:
        sky_y3 = _blend(SKIES[name], height_px)
        image_yx3 = np.repeat(sky_y3[:, None], width_px, axis=1)
        if name in GROUNDS:
            image_yx3 = _add_ground(image_yx3, name)
        if name == "night":
            image_yx3 = _add_stars(image_yx3)
    pixels_yx3 = image_yx3.round().astype(np.uint8)
    pixels_yx3.setflags(write=False)
    return pixels_yx3


def _blend(stops: Stops, height_px: int) -> Floats:
    """Return one colour per row, linear between the stops."""
    heights = [height for height, _ in stops]
    colours_Z3 = np.array([colour for _, colour in stops], np.float32)
    rows = (np.arange(height_px) + 0.5) / height_px
    channels = [np.interp(rows, heights, colours_Z3[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def _add_ground(image_yx3: Floats, name: str) -> Floats:
    height_px, width_px = image_yx3.shape[:2]
    mean, wave = HORIZONS[name]
    # Waves measured in heights, so that hills look alike in wide and tall images.
    across_x = np.arange(width_px) / height_px
    edge_x = mean + wave * (0.7 * np.sin(5.0 * across_x + 0.6) + 0.3 * np.sin(11.0 * across_x))
    below_yx = np.arange(height_px)[:, None] + 0.5 - edge_x[None] * height_px
    share_yx1 = np.clip(below_yx / 3 + 0.5, 0, 1)[..., None].astype(np.float32)
    ground_y3 = _blend(GROUNDS[name], height_px)
    mixed_yx3: Floats = image_yx3 + (ground_y3[:, None] - image_yx3) * share_yx1
    return mixed_yx3


def _add_stars(image_yx3: Floats) -> Floats:
    rng = np.random.default_rng(11)
    height_px, width_px = image_yx3.shape[:2]
    tile_yx = np.zeros((STAR_TILE_PX, STAR_TILE_PX), np.float32)
    grid = np.arange(STAR_TILE_PX)
    for _ in range(STARS_PER_TILE):
        y, x = rng.uniform(20, STAR_TILE_PX - 20, 2)
        radius = rng.uniform(3.0, 5.5)
        distance_yx = np.hypot(grid[:, None] - y, grid[None] - x)
        tile_yx = np.maximum(tile_yx, np.clip(radius - distance_yx + 0.5, 0, 1))
    copies = (-(-height_px // STAR_TILE_PX), -(-width_px // STAR_TILE_PX))
    light_yx1 = np.tile(tile_yx, copies)[:height_px, :width_px, None]
    star_3 = np.array((255, 250, 215), np.float32)
    lit_yx3: Floats = image_yx3 + (star_3 - image_yx3) * light_yx1
    return lit_yx3
