"""Captions of scenes as people would type them: short ones, and the same facts as sentences.

A caption may leave facts out: a colour that is not named stays free, and a negative
prompt has something to push against.
"""

import random
from dataclasses import dataclass

from training.backgrounds import PLAIN
from training.scenes import OFFERED, SQUARE, Scene, SizeWord, Thing

# Shares of captions that leave something out.
NO_COLOUR, ONLY_BACKGROUND, ONLY_ONE_THING, NO_BACKGROUND, TAGS = 0.06, 0.03, 0.04, 0.07, 0.04
# Share of wide and tall images whose caption names the shape.
SHAPE_NAMED = 0.5

SIZE_WORDS: dict[SizeWord, tuple[str, ...]] = {
    "small": ("small", "tiny", "little"),
    "medium": ("",),
    "large": ("large", "big", "huge"),
}
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "cat": ("kitten",),
    "dog": ("puppy",),
    "pine tree": ("tree", "fir tree"),
    "rocket": ("spaceship",),
    "pizza": ("slice of pizza",),
    "panda": ("panda bear",),
}
BACKGROUND_PHRASES: dict[str, tuple[str, ...]] = {
    "meadow": ("in a meadow", "on green grass under a blue sky", "in a grassy field"),
    "beach": ("on a beach", "by the sea", "at the seaside"),
    "desert": ("in the desert", "in a sandy desert", "among sand dunes"),
    "snow": ("in the snow", "in a snowy field", "in winter snow"),
    "sunset": ("at sunset", "in front of a sunset", "in an evening sky"),
    "night": ("at night", "in the starry night sky", "under the stars", "in space"),
    "sky": ("in the sky", "high in the air", "in a clear blue sky"),
    "underwater": ("underwater", "under the sea", "at the bottom of the ocean"),
}
WIDE_PHRASES = (
    "a wide panorama of",
    "a wide image of",
    "a landscape image of",
    "a wide view of",
)
TALL_PHRASES = ("a tall image of", "a portrait image of", "a tall poster of", "a tall view of")
PLAIN_PHRASES = ("an image of", "an image of", "an illustration of")


@dataclass(frozen=True, slots=True)
class Caption:
    """A text, and the ratio index that `auto` should choose for it."""

    text: str
    ratio_index: int


def write_caption(scene: Scene, rng: random.Random, is_complete: bool = False) -> Caption:
    """Return a short caption of a scene; a complete one leaves nothing out."""
    text = _describe(scene, rng, is_complete)
    shape, ratio_index = choose_shape(scene, rng)
    if shape:
        text = f"{shape} {text}"
    elif rng.random() < 0.12:
        text = f"{rng.choice(PLAIN_PHRASES)} {text}"
    return Caption(_vary(text, rng), ratio_index)


def choose_shape(scene: Scene, rng: random.Random) -> tuple[str, int]:
    """Return words for a wide or tall image, or none, and the ratio they stand for."""
    is_plain = abs(scene.columns - scene.rows) <= 2
    if is_plain or rng.random() >= SHAPE_NAMED:
        return "", SQUARE.index
    phrases = WIDE_PHRASES if scene.columns > scene.rows else TALL_PHRASES
    return rng.choice(phrases), ratio_of(scene)


def ratio_of(scene: Scene) -> int:
    """Return the ratio index of the scene's shape; square for shapes that are not offered."""
    shape = (scene.columns, scene.rows)
    matching = [s.index for s in OFFERED if (s.width_px // 64, s.height_px // 64) == shape]
    return matching[0] if matching else SQUARE.index


def _describe(scene: Scene, rng: random.Random, is_complete: bool) -> str:
    lot = 1.0 if is_complete else rng.random()
    if lot < ONLY_BACKGROUND:
        return _without_preposition(scene.background, rng)
    lot -= ONLY_BACKGROUND
    if lot < ONLY_ONE_THING:
        return name_thing(rng.choice(scene.things), rng)
    lot -= ONLY_ONE_THING
    if lot < TAGS:
        names = [" ".join(filter(None, (t.colour, t.kind))) for t in scene.things]
        return ", ".join([*names, _without_preposition(scene.background, rng)])
    lot -= TAGS
    names = [name_thing(t, rng, with_colour=not lot < NO_COLOUR) for t in scene.things]
    placed = place_names(scene, names, rng)
    lot -= NO_COLOUR
    if 0 <= lot < NO_BACKGROUND:
        return placed
    comma = "," if rng.random() < 0.25 else ""
    return f"{placed}{comma} {name_background(scene.background, rng)}"


def name_thing(thing: Thing, rng: random.Random, with_colour: bool = True) -> str:
    """Return an object with its article, its size word and, when it has one, its colour."""
    kind = thing.kind
    if kind in OTHER_NAMES and rng.random() < 0.15:
        kind = rng.choice(OTHER_NAMES[kind])
    size = rng.choice(SIZE_WORDS[thing.size])
    return _with_article(" ".join(filter(None, (size, thing.colour if with_colour else "", kind))))


def name_background(background: str, rng: random.Random) -> str:
    """Return the background as the end of a caption."""
    if background in PLAIN:
        named = _with_article(f"{background} background")
        return f"{rng.choice(('on', 'on', 'against', 'with'))} {named}"
    return rng.choice(BACKGROUND_PHRASES[background])


def place_names(scene: Scene, names: list[str], rng: random.Random) -> str:
    """Return the named objects and where they are."""
    first, *others = names
    match scene.layout:
        case "center":
            return first + rng.choice(("", "", " in the center", " in the middle"))
        case "left" | "right":
            return f"{first} on the {scene.layout}{rng.choice(('', ' side'))}"
        case "top" | "bottom":
            return f"{first} at the {scene.layout}"
        case "beside":
            (second,) = others
            return rng.choice((
                f"{first} to the left of {second}",
                f"{first} left of {second}",
                f"{second} to the right of {first}",
                f"{first} on the left and {second} on the right",
                f"{first} and {second}",
            ))  # fmt: skip
        case "above":
            (second,) = others
            return rng.choice((
                f"{first} above {second}",
                f"{second} below {first}",
                f"{first} at the top and {second} at the bottom",
            ))  # fmt: skip
        case "row" | "column":
            second, third = others
            return f"{first}, {second} and {third} in a {scene.layout}"


def describe_facts(scene: Scene, rng: random.Random) -> list[str]:
    """Return the facts of a scene as sentences, to be hidden in longer prose."""
    names = [name_thing(thing, rng) for thing in scene.things]
    if len(names) == 2 and rng.random() < 0.5:
        sides = ("left", "right") if scene.layout == "beside" else ("top", "bottom")
        preposition = "on" if scene.layout == "beside" else "at"
        facts = [
            f"{preposition} the {side} there is {name}"
            for side, name in zip(sides, names, strict=True)
        ]
    else:
        opening = rng.choice(("", "there is ", "it shows ", "the image shows "))
        facts = [opening + place_names(scene, names, rng)]
    background = name_background(scene.background, rng)
    if rng.random() < 0.6:
        facts[-1] += f" {background}"
    else:
        facts.append(
            rng.choice(("all of it ", "the whole scene is ", "everything is ")) + background
        )
    return [f"{fact[0].upper()}{fact[1:]}." for fact in facts]


def _without_preposition(background: str, rng: random.Random) -> str:
    phrase = name_background(background, rng)
    return phrase.split(" ", 1)[1] if background in PLAIN else phrase


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _vary(text: str, rng: random.Random) -> str:
    """Return the text in one of several ways of writing: capitals, articles, full stops."""
    if rng.random() < 0.1 and text.startswith(("a ", "an ")):
        text = text.split(" ", 1)[1]
    if rng.random() < 0.25:
        text = text[0].upper() + text[1:]
    return f"{text}." if rng.random() < 0.15 else text
