"""Scores of an image against its scene, by comparison with the artwork.

No network: an object is found where some painted template, at some place of the token grid,
differs least from the image. Images are compared at an eighth of their size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.art import COLOURED_FILES, load_sprite
from training.backgrounds import BACKGROUNDS, paint_background
from training.scenes import (
    COLOURS,
    KINDS,
    MARGIN_PX,
    SIDE_TOKENS,
    TOKEN_PX,
    Scene,
    Thing,
    paint_scene,
)

SCALE = 8
CELL = TOKEN_PX // SCALE
# How far from its place, in tokens, an object is searched for.
REACH = 1
# A place is taken when this share of its square differs from the background by so much of 255.
MIN_COVER, MIN_DIFFERENCE = 0.2, 18.0
# How far, in tokens, the middle of what stands there may be from the middle of its place.
MAX_OFFSET = 1.5
# Share of all that differs from the background that must lie at the scene's places.
MIN_INSIDE = 0.7
# Share of what differs from the background around a place that the place must hold.
MIN_ALONE = 0.75
# How much worse than the best fit of an image another place may fit and still hold a thing.
SPREAD = 3.0

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Score:
    """What is right in one image."""

    background: bool
    position: bool
    kind: bool
    colour: bool

    @property
    def all(self) -> bool:
        return all(astuple(self))


@dataclass(frozen=True, slots=True)
class Template:
    """One painted object in its square. Shapes: rgb_yx3, alpha_yx in [0, 1]."""

    kind: str
    colour: str | None
    rgb_yx3: Floats
    alpha_yx: Floats


def score_image(image_yx3: npt.NDArray[np.uint8], scene: Scene, art: Path) -> Score:
    """Return which parts of the scene an image shows."""
    small_yx3 = _shrink(image_yx3)
    around_yx = ~_mask_of(scene, REACH)
    found = find_background(small_yx3, around_yx)
    foreground_yx = _differs(small_yx3, found)
    # A wrong background is one mistake, not several.
    scene_as_found = replace(scene, background=found)
    matches = [_best_match(small_yx3, thing, scene_as_found, art) for thing in scene.things]
    colours = [
        find_colour(small_yx3, thing, scene_as_found, art) == thing.colour
        for thing in scene.things
        if thing.colour is not None
    ]
    return Score(
        background=found == scene.background,
        position=_stands_right(foreground_yx, scene),
        kind=all(match == thing.kind for match, thing in zip(matches, scene.things, strict=True)),
        colour=all(colours),
    )


def find_background(small_yx3: Floats, where_yx: npt.NDArray[np.bool_]) -> str:
    """Return the background that differs least in the masked part of a shrunk image."""
    height, width = small_yx3.shape[:2]
    errors = {
        name: float(np.square(small_yx3 - _background(name, width, height))[where_yx].mean())
        for name in BACKGROUNDS
    }
    return min(errors, key=lambda name: errors[name])


def find_colour(small_yx3: Floats, thing: Thing, scene: Scene, art: Path) -> str | None:
    """Return the colour in which the object's kind fits best."""
    same_kind = [t for t in list_templates(art, thing.size) if t.kind == thing.kind]
    errors = [
        (_least_error(small_yx3, template, thing, scene), template.colour) for template in same_kind
    ]
    return min(errors, key=lambda pair: pair[0])[1]


def _best_match(small_yx3: Floats, thing: Thing, scene: Scene, art: Path) -> str:
    errors = [
        (_least_error(small_yx3, template, thing, scene), template.kind)
        for template in list_templates(art, thing.size)
    ]
    return min(errors)[1]


def _least_error(small_yx3: Floats, template: Template, thing: Thing, scene: Scene) -> float:
    """Return the least mean squared error of the image to a template painted near a place.

    Over the template's whole square: what it does not cover has to look like the background.
    """
    return min(
        _error_at(small_yx3, template, scene.background, row, column)
        for row, column in _places(thing, scene)
    )


def _error_at(
    small_yx3: Floats, template: Template, background: str, row: int, column: int
) -> float:
    """Return the mean squared error to a template painted at a place of the token grid."""
    height, width = small_yx3.shape[:2]
    top, left, side = row * CELL, column * CELL, len(template.rgb_yx3)
    window_yx3 = small_yx3[top : top + side, left : left + side]
    behind_yx3 = _background(background, width, height)[top : top + side, left : left + side]
    alpha_yx1 = template.alpha_yx[..., None]
    wanted_yx3 = behind_yx3 + (template.rgb_yx3 - behind_yx3) * alpha_yx1
    return float(np.square(window_yx3 - wanted_yx3).mean())


def _places(thing: Thing, scene: Scene) -> Iterator[tuple[int, int]]:
    for row in range(thing.row - REACH, thing.row + REACH + 1):
        for column in range(thing.column - REACH, thing.column + REACH + 1):
            if 0 <= row <= scene.rows - thing.side and 0 <= column <= scene.columns - thing.side:
                yield row, column


def _stands_right(foreground_yx: npt.NDArray[np.bool_], scene: Scene) -> bool:
    """Return whether each place is taken, centred, and little else is in the image."""
    ys, xs = np.nonzero(foreground_yx)
    inside = _mask_of(scene, REACH)
    if len(ys) == 0 or inside[ys, xs].sum() < MIN_INSIDE * len(ys):
        return False
    centres = np.array([(t.row + t.side / 2, t.column + t.side / 2) for t in scene.things]) * CELL
    away = np.stack((ys + 0.5, xs + 0.5), axis=-1)[:, None] - centres[None]
    nearest = np.square(away).sum(axis=-1).argmin(axis=1)
    for index, thing in enumerate(scene.things):
        offsets = away[nearest == index, index]
        if len(offsets) < MIN_COVER * (thing.side * CELL) ** 2:
            return False
        if np.abs(offsets.mean(axis=0)).max() > MAX_OFFSET * CELL:
            return False
    return True


def _mask_of(scene: Scene, reach: int) -> npt.NDArray[np.bool_]:
    mask_yx = np.zeros((scene.rows * CELL, scene.columns * CELL), bool)
    for thing in scene.things:
        top, left = max(thing.row - reach, 0), max(thing.column - reach, 0)
        bottom, right = thing.row + thing.side + reach, thing.column + thing.side + reach
        mask_yx[top * CELL : bottom * CELL, left * CELL : right * CELL] = True
    return mask_yx


def _differs(small_yx3: Floats, background: str) -> npt.NDArray[np.bool_]:
    height, width = small_yx3.shape[:2]
    distance_yx = np.abs(small_yx3 - _background(background, width, height)).max(axis=-1)
    return np.asarray(distance_yx > MIN_DIFFERENCE)


def _shrink(image_yx3: npt.NDArray[np.uint8]) -> Floats:
    height, width = image_yx3.shape[0] // SCALE, image_yx3.shape[1] // SCALE
    small = Image.fromarray(image_yx3).resize((width, height), Image.Resampling.BOX)
    return np.asarray(small).astype(np.float32)


@lru_cache(maxsize=512)
def _background(name: str, width: int, height: int) -> Floats:
    return _shrink(paint_background(name, width * SCALE, height * SCALE))


@lru_cache(maxsize=8)
def list_templates(art: Path, size: str) -> tuple[Template, ...]:
    """Return every object in every colour, at one size."""
    side = SIDE_TOKENS[size] * CELL  # type: ignore[index]
    templates = []
    for kind in KINDS:
        for colour in COLOURS if kind in COLOURED_FILES else (None,):
            sprite = load_sprite(art, kind, colour, side * SCALE - 2 * MARGIN_PX)
            square = Image.new("RGBA", (side * SCALE, side * SCALE))
            square.paste(
                sprite, ((square.width - sprite.width) // 2, (square.height - sprite.height) // 2)
            )
            # Resizing with alpha weighs colours by it, so that borders keep the object's colour.
            rgba_yx4 = np.asarray(square.resize((side, side), Image.Resampling.BOX))
            rgba_yx4 = rgba_yx4.astype(np.float32)
            alpha_yx: Floats = np.divide(rgba_yx4[..., 3], 255, dtype=np.float32)
            templates.append(Template(kind, colour, rgba_yx4[..., :3], alpha_yx))
    return tuple(templates)


def summarize(scores: Sequence[Score]) -> dict[str, float]:
    """Return the share of images in which each thing is right."""
    count = max(1, len(scores))
    names = ("background", "position", "kind", "colour", "all")
    return {name: sum(getattr(score, name) for score in scores) / count for name in names}


def measure_ceiling(scenes: Sequence[Scene], art: Path) -> dict[str, float]:
    """Return the accuracy of the scorer: its scores of the scenes as painted."""
    return summarize([score_image(paint_scene(scene, art), scene, art) for scene in scenes])


def find_kinds(image_yx3: npt.NDArray[np.uint8], art: Path) -> set[str]:
    """Return the kinds of things that stand anywhere in an image, wherever they should be.

    A place counts when it holds something, and holds nearly all of it that is near. Things that
    touch each other count as one.
    """
    small_yx3 = _shrink(image_yx3)
    rows, columns = small_yx3.shape[0] // CELL, small_yx3.shape[1] // CELL
    background = find_background(small_yx3, np.ones(small_yx3.shape[:2], bool))
    foreground_yx = _differs(small_yx3, background)
    found = set()
    for size, side in SIDE_TOKENS.items():
        for row in range(rows - side + 1):
            for column in range(columns - side + 1):
                inside, around = (
                    foreground_yx[
                        max(0, row - reach) * CELL : (row + side + reach) * CELL,
                        max(0, column - reach) * CELL : (column + side + reach) * CELL,
                    ].sum()
                    for reach in (0, REACH)
                )
                is_taken = inside >= MIN_COVER * (side * CELL) ** 2
                if is_taken and inside >= MIN_ALONE * around:
                    errors = [
                        (_error_at(small_yx3, template, background, row, column), template.kind)
                        for template in list_templates(art, size)
                    ]
                    found.add(min(errors))
    # A wrong size fits worse: of places near each other only the best fit counts.
    return {kind for error, kind in found if error <= SPREAD * min(found)[0]}
