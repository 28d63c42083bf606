"""Scenes: one to three objects on a background, where everything lies on the token grid.

An object fills a square of whole tokens and stands at one of few places, so that a token shows
one of few patches: which a small transformer learns to generate in an hour.
"""

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from model.resolution import Size, list_offered_sizes
from training.art import COLOURED_FILES, FILES, PAINTS, load_sprite
from training.backgrounds import BACKGROUNDS, paint_background

TOKEN_PX = 64
OFFERED = list_offered_sizes(1024)
SQUARE = next(size for size in OFFERED if size.width_px == size.height_px)

KINDS = tuple(FILES)
COLOURS = tuple(PAINTS)

SizeWord = Literal["small", "medium", "large"]
Layout = Literal["center", "left", "right", "top", "bottom", "beside", "above", "row", "column"]
# Which scenes to make: those of the training set, those left out of it, or both.
Split = Literal["seen", "held", "any"]

SIDE_TOKENS: dict[SizeWord, int] = {"small": 4, "medium": 5, "large": 7}
MARGIN_PX = 8
# Centres of the objects as shares of width and height.
PLACES: dict[Layout, tuple[tuple[float, float], ...]] = {
    "center": ((0.5, 0.5),),
    "left": ((0.24, 0.5),),
    "right": ((0.76, 0.5),),
    "top": ((0.5, 0.24),),
    "bottom": ((0.5, 0.76),),
    "beside": ((0.26, 0.5), (0.74, 0.5)),
    "above": ((0.5, 0.25), (0.5, 0.75)),
    "row": ((0.18, 0.5), (0.5, 0.5), (0.82, 0.5)),
    "column": ((0.5, 0.18), (0.5, 0.5), (0.5, 0.82)),
}
# Pairs that no training scene holds, two backgrounds per kind and a colour per coloured kind.
NUM_HELD_BACKGROUNDS = 2


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: what it is, and the tokens that it covers."""

    kind: str
    colour: str | None
    size: SizeWord
    column: int
    row: int

    @property
    def side(self) -> int:
        """Return its side in tokens."""
        return SIDE_TOKENS[self.size]


@dataclass(frozen=True, slots=True)
class Scene:
    """An image before it is painted; a size in whole tokens."""

    columns: int
    rows: int
    background: str
    layout: Layout
    things: tuple[Thing, ...]


def _held_pairs() -> frozenset[tuple[str, str]]:
    rng = random.Random(2026)
    pairs = {(kind, rng.choice(COLOURS)) for kind in COLOURED_FILES}
    for kind in KINDS:
        pairs |= {(kind, f"on {b}") for b in rng.sample(BACKGROUNDS, NUM_HELD_BACKGROUNDS)}
    return frozenset(pairs)


HELD_PAIRS = _held_pairs()


def is_held(scene: Scene) -> bool:
    """Return whether a scene shows a combination that training never shows."""
    return any(
        (thing.kind, thing.colour) in HELD_PAIRS
        or (thing.kind, f"on {scene.background}") in HELD_PAIRS
        for thing in scene.things
    )


def make_scene(rng: random.Random, columns: int, rows: int, split: Split = "seen") -> Scene:
    """Return a random scene of a split for a grid of tokens."""
    while True:
        scene = _random_scene(rng, columns, rows)
        if split == "any" or is_held(scene) == (split == "held"):
            return scene


def _random_scene(rng: random.Random, columns: int, rows: int) -> Scene:
    layout = _choose_layout(rng, columns, rows)
    places = PLACES[layout]
    kinds = rng.sample(KINDS, len(places))
    things = []
    for kind, place in zip(kinds, places, strict=True):
        size = _choose_size(rng, layout, columns, rows)
        colour = rng.choice(COLOURS) if kind in COLOURED_FILES else None
        # A single object moves by a token now and then; neighbours keep apart.
        jitter = rng.randrange(2) if len(places) == 1 else 0
        side = SIDE_TOKENS[size]
        column = _start(place[0], columns, side, jitter if layout not in ("top", "bottom") else 0)
        row = _start(place[1], rows, side, jitter if layout in ("top", "bottom") else 0)
        things.append(Thing(kind, colour, size, column, row))
    return Scene(columns, rows, rng.choice(BACKGROUNDS), layout, tuple(things))


def _start(share: float, num_tokens: int, side: int, jitter: int) -> int:
    return min(max(int(share * num_tokens - side / 2 + 0.5) - jitter, 0), num_tokens - side)


def _choose_layout(rng: random.Random, columns: int, rows: int) -> Layout:
    """Return a layout that the shape has room for."""
    single: tuple[Layout, ...] = ("center", "center", "left", "right", "top", "bottom")
    choices: list[Layout] = list(single)
    if columns >= 2 * SIDE_TOKENS["small"]:
        choices += ["beside"] * (4 if columns >= rows else 1)
    if rows >= 2 * SIDE_TOKENS["small"]:
        choices += ["above"] * (4 if rows > columns else 1)
    if columns >= 14:
        choices += ["row"]
    if rows >= 14:
        choices += ["column"] * (1 if rows > columns else 0)
    return rng.choice(choices)


def _choose_size(rng: random.Random, layout: Layout, columns: int, rows: int) -> SizeWord:
    """Return a size with which the objects of a layout stay apart."""
    extent = columns if layout in ("beside", "row") else rows
    room = extent // len(PLACES[layout])
    sizes: tuple[SizeWord, ...] = ("medium", "medium", "small", "large")
    fitting = [s for s in sizes if SIDE_TOKENS[s] <= min(room, columns, rows)]
    return rng.choice(fitting or ["small"])


def paint_scene(scene: Scene, art: Path) -> npt.NDArray[np.uint8]:
    """Return the image of a scene. Shapes: -> rgb_yx3."""
    pixels_yx3 = paint_background(scene.background, scene.columns * TOKEN_PX, scene.rows * TOKEN_PX)
    image = Image.fromarray(pixels_yx3)
    for thing in scene.things:
        side_px = thing.side * TOKEN_PX
        sprite = load_sprite(art, thing.kind, thing.colour, side_px - 2 * MARGIN_PX)
        left = thing.column * TOKEN_PX + (side_px - sprite.width) // 2
        top = thing.row * TOKEN_PX + (side_px - sprite.height) // 2
        image.paste(sprite, (left, top), sprite)
    return np.array(image)


def choose_size(rng: random.Random) -> Size:
    """Return one of the offered sizes; a third are square."""
    return SQUARE if rng.random() < 1 / 3 else rng.choice(OFFERED)


def grid_of(size: Size) -> tuple[int, int]:
    """Return (columns, rows) in tokens."""
    return size.width_px // TOKEN_PX, size.height_px // TOKEN_PX


def seed_of(*parts: object) -> int:
    """Return a seed that depends on nothing but the parts, in every process."""
    return zlib.crc32("/".join(map(str, parts)).encode())


def list_held_scenes(count: int, seed: int, sizes: Sequence[Size] = (SQUARE,)) -> list[Scene]:
    """Return scenes for scoring: each one holds a combination that no training scene has."""
    rng = random.Random(seed)
    return [make_scene(rng, *grid_of(rng.choice(sizes)), split="held") for _ in range(count)]
