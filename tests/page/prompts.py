"""The scene that a prompt in the tiny checkpoint's words describes, for the scorer."""

import re
from typing import get_args

from model.resolution import Size
from training.art import COLOURED_FILES
from training.captions import BACKGROUND_PHRASES, OTHER_NAMES, TALL_PHRASES, WIDE_PHRASES
from training.scenes import (
    COLOURS,
    KINDS,
    OFFERED,
    PLACES,
    SIDE_TOKENS,
    SQUARE,
    Layout,
    Scene,
    SizeWord,
    Thing,
    grid_of,
)

WIDE = next(size for size in OFFERED if str(size) == "1280x768")
TALL = next(size for size in OFFERED if str(size) == "768x1280")
_KIND_OF = {name: kind for kind in KINDS for name in (kind, *OTHER_NAMES.get(kind, ()))}
_NAMES = "|".join(sorted(map(re.escape, _KIND_OF), key=len, reverse=True))
_THING = re.compile(rf"(?:(small|large) )?(?:({'|'.join(COLOURS)}) )?({_NAMES})(?!\w)")
# Which words place the things, in the order in which they are looked for.
_LAYOUTS: dict[str, Layout] = {
    "in a row": "row",
    "in a column": "column",
    "to the left of": "beside",
    " above ": "above",
    "on the left": "left",
    "on the right": "right",
    "at the top": "top",
    "at the bottom": "bottom",
}


def size_of(prompt: str) -> Size:
    """Return a size of the shape that a prompt names, square if it names none."""
    if prompt.lower().startswith(WIDE_PHRASES):
        return WIDE
    return TALL if prompt.lower().startswith(TALL_PHRASES) else SQUARE


def names_places(prompt: str) -> bool:
    """Return whether a prompt says where its things are."""
    return any(words in prompt for words in _LAYOUTS)


def read_scene(prompt: str) -> Scene:
    """Return the scene of a prompt; things stand left to right or top to bottom as named.

    Raises:
        ValueError: the prompt names no thing or no background.
    """
    columns, rows = grid_of(size_of(prompt))
    background = _background_of(prompt)
    named = _THING.findall(prompt.lower().replace(f"{background} background", ""))
    layout = next((layout for words, layout in _LAYOUTS.items() if words in prompt), None)
    layout = layout or ("beside" if len(named) == 2 else "center")
    if len(named) != len(PLACES[layout]):
        raise ValueError(f"{prompt!r} names {len(named)} things for the layout {layout}")
    things = []
    for (size, colour, name), place in zip(named, PLACES[layout], strict=True):
        word: SizeWord = next((w for w in get_args(SizeWord) if w == size), "medium")
        kind, side = _KIND_OF[name], SIDE_TOKENS[word]
        column, row = (
            min(max(int(share * extent - side / 2 + 0.5), 0), extent - side)
            for share, extent in zip(place, (columns, rows), strict=True)
        )
        painted = colour if colour and kind in COLOURED_FILES else None
        things.append(Thing(kind, painted, word, column, row))
    return Scene(columns, rows, background, layout, tuple(things))


def _background_of(prompt: str) -> str:
    plain = re.search(r"an? (\w+) background", prompt)
    if plain is not None:
        return plain[1]
    for background, phrases in BACKGROUND_PHRASES.items():
        if any(phrase in prompt for phrase in (*phrases, f"on the {background}")):
            return background
    raise ValueError(f"{prompt!r} names no background")
