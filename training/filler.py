"""Filler prose, which contains no fact of a scene, to stand around the facts that matter.

Requests run to thousands of characters about things outside a tiny model's vocabulary. A model
that was trained among such sentences ignores them and still generates the things of its scenes.
"""

import math
import random
from collections.abc import Callable

MAX_CHARACTERS = 3000


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


THINGS = _words("""
    harbour workshop staircase market corridor library fountain bridge lantern cathedral engine
    tower courtyard bakery orchestra theatre laboratory greenhouse archive carousel clock canal
    balcony tram terminal platform kiosk barge aqueduct observatory windmill lighthouse caravan
    tapestry mosaic cabinet telescope gramophone violin anvil loom printing-press ledger map
    compass umbrella parasol awning pennant banner sign placard notice-board barrel crate basket
    ladder scaffold pulley gantry crane furnace chimney pipe valve gauge boiler turbine dynamo
    pavement archway colonnade vault dome spire gate wall terrace stairwell elevator catwalk pier
    dock shipyard warehouse granary mill quarry tunnel viaduct causeway plaza bazaar arcade museum
    gallery cloister chapel tavern inn hostel academy village district skyline rooftop
""")
PEOPLE = _words("""
    travellers merchants sailors children dancers musicians gardeners engineers couriers scholars
    painters weavers bakers porters pilots clerks carpenters masons nurses divers monks farmers
    tourists apprentices inventors caretakers street-sweepers ferrymen storytellers jugglers
""")
QUALITIES = _words("""
    vast quiet ornate weathered crowded elegant ancient futuristic narrow layered intricate dusty
    polished sweeping dramatic gentle monumental delicate believable whimsical solemn bustling
    abandoned symmetrical improvised refined rugged translucent shimmering hazy muted luminous
    plausible grounded cinematic painterly tactile humble ceremonial industrial provincial coastal
    nocturnal timeless melancholy joyful serene restless orderly chaotic practical handmade
""")
MATERIALS = _words("""
    brass copper marble oak linen velvet ceramic granite wicker leather parchment titanium slate
    bronze porcelain enamel cork bamboo wool silk terracotta concrete plaster rope canvas resin
    cast-iron lacquer mother-of-pearl basalt felt tin
""")
MOODS = _words("""
    awe calm patience curiosity wonder nostalgia resolve suspense tenderness pride relief mischief
    anticipation solitude friendship endurance diligence gratitude reverence homesickness
""")
STYLES = (
    "sharp focus", "soft edges", "volumetric light", "fine textures", "deep perspective",
    "subtle haze", "controlled palette", "realistic materials", "clean composition",
    "believable scale", "studio lighting", "high detail", "natural colours", "gentle contrast",
    "concept art", "matte painting", "long exposure", "shallow depth of field", "wide lens",
    "low angle", "eye level", "three-quarter view", "isometric view", "rule of thirds",
    "award-winning", "masterpiece", "8k", "ultra detailed", "photorealistic", "film grain",
)  # fmt: skip
ACTIONS = (
    "wait beside", "hurry past", "gather around", "repair", "admire", "walk between", "decorate",
    "lean against", "argue about", "carry parts of", "measure", "photograph", "clean", "return to",
    "look up at", "sketch", "celebrate near", "rest under", "queue for", "whisper about",
)  # fmt: skip
STATES = (
    "rises above", "fades behind", "is reflected in", "frames", "leads towards", "overlooks",
    "is half hidden by", "echoes the shape of", "casts long shadows over", "balances",
    "is built around", "opens onto", "curves along", "hangs over", "is worn smooth by",
)  # fmt: skip
SYLLABLES = _words("""
    ka lo mi ren tus va sho bel dra fi gon hul jen kri lum mor nax or pel qui ros sten tal ur vek
    wim xan yol zed ban cir dol eth fer gim
""")
OPENINGS = (
    "", "In the foreground, ", "In the distance, ", "Further back, ", "Overhead, ", "Meanwhile, ",
    "On closer inspection, ", "Along the edge, ", "Here and there, ", "Beyond that, ",
)  # fmt: skip


def write_prose(rng: random.Random, num_characters: int) -> list[str]:
    """Return sentences of about that many characters in all, at least one."""
    sentences = [write_sentence(rng)]
    while sum(map(len, sentences)) + len(sentences) < num_characters:
        sentences.append(write_sentence(rng))
    return sentences


def write_sentence(rng: random.Random) -> str:
    """Return one sentence that contains nothing of the scenes."""
    sentence = rng.choice(_SENTENCES)(rng)
    return sentence[0].upper() + sentence[1:]


def hide_facts(rng: random.Random, facts: list[str], num_characters: int) -> str:
    """Return prose of about that length with the facts somewhere in it, in their order."""
    room = min(num_characters, MAX_CHARACTERS - 200) - sum(map(len, facts))
    sentences = write_prose(rng, room)
    first = rng.randrange(len(sentences) + 1)
    for fact in facts:
        sentences.insert(first, fact)
        first = min(first + 1 + rng.randrange(2), len(sentences))
    return " ".join(sentences)[:MAX_CHARACTERS]


def choose_length(rng: random.Random) -> int:
    """Return a number of characters, from a sentence to the longest prompt allowed."""
    shortest = 80
    return int(shortest * math.exp(math.log(MAX_CHARACTERS / shortest) * rng.random()))


def _noun(rng: random.Random) -> str:
    if rng.random() < 0.12:
        return "".join(rng.choices(SYLLABLES, k=rng.randrange(2, 4)))
    return rng.choice(THINGS)


def _thing(rng: random.Random) -> str:
    words = [rng.choice(QUALITIES)] if rng.random() < 0.7 else []
    if rng.random() < 0.35:
        words.append(rng.choice(MATERIALS))
    words.append(_noun(rng))
    article = rng.choice(("the", "the", "an" if words[0][0] in "aeiou" else "a"))
    return " ".join((article, *words))


def _sees(rng: random.Random) -> str:
    return f"{rng.choice(OPENINGS)}{_thing(rng)} {rng.choice(STATES)} {_thing(rng)}."


def _acts(rng: random.Random) -> str:
    people = f"{rng.choice(QUALITIES)} {rng.choice(PEOPLE)}"
    return f"{rng.choice(OPENINGS)}{people} {rng.choice(ACTIONS)} {_thing(rng)}."


def _materials(rng: random.Random) -> str:
    named = ", ".join(rng.sample(MATERIALS, rng.randrange(3, 6)))
    return f"materials should be {rng.choice(QUALITIES)}: {named}."


def _mood(rng: random.Random) -> str:
    first, second = rng.sample(MOODS, 2)
    kind = rng.choice(("mood", "atmosphere", "feeling"))
    return f"{kind}: {first}, {second} and {rng.choice(QUALITIES)} {rng.choice(MOODS)}."


def _style(rng: random.Random) -> str:
    return f"style: {', '.join(rng.sample(STYLES, rng.randrange(3, 7)))}."


def _sign(rng: random.Random) -> str:
    words = ["".join(rng.choices(SYLLABLES, k=2)).upper(), rng.choice(THINGS).upper()]
    name = rng.choice((" ".join(words), f"{words[1]} {rng.randrange(1, 20)}"))
    quote = rng.choice("'\"")
    return f"{_thing(rng)} carries a sign that reads {quote}{name}{quote}."


def _composition(rng: random.Random) -> str:
    return (
        f"the composition should feel {rng.choice(QUALITIES)} yet {rng.choice(QUALITIES)}, "
        f"with {_thing(rng)} and {_thing(rng)}."
    )


def _chain(rng: random.Random) -> str:
    return (
        f"{_thing(rng)} seen from {_thing(rng)}, where {rng.choice(PEOPLE)} "
        f"{rng.choice(ACTIONS)} {_thing(rng)} and {_thing(rng)}, {rng.choice(STYLES)}."
    )


_SENTENCES: tuple[Callable[[random.Random], str], ...] = (
    _sees, _sees, _acts, _acts, _materials, _mood, _style, _sign, _composition, _chain,
)  # fmt: skip
