"""Vocabulary of the tiny checkpoint: the words of its captions, and prompts that it draws well."""

import re

from pipeline.vocabulary import Vocabulary, WordGroup
from training.art import COLOURED_FILES, PAINTS, PLAIN_FILES
from training.backgrounds import PLAIN
from training.captions import BACKGROUND_PHRASES, OTHER_NAMES, TALL_PHRASES, WIDE_PHRASES

# Each is drawn and scored by tests/page/test_examples.py.
EXAMPLES = (
    "a red car to the left of a panda in the snow",
    "a rocket on a blue background",
    "a penguin and a green apple on the beach",
    "a cat, a purple balloon and a dog in a row in a meadow",
    "a rocket above a red heart at night",
    "a slice of pizza in the desert",
    "a wide panorama of a cat in the snow",
    "a large purple balloon in the sky",
    "a cat and a dog in a meadow",
    "a red car in the snow",
)
_PREPOSITION = re.compile(
    r"^(?:in front of|at the bottom of|high in|in|on|by|at|among|under)(?: an?| the)? "
)


def build_vocabulary() -> Vocabulary:
    """Return what vocabulary.json of the exported checkpoint says."""
    every_kind = (*COLOURED_FILES, *PLAIN_FILES)
    coloured = ", ".join(COLOURED_FILES)
    return Vocabulary(
        about="A tiny checkpoint for trying the server. It draws painted scenes: one to three of "
        f"{len(every_kind)} things on one of {len(BACKGROUND_PHRASES) + len(PLAIN)} backgrounds.",
        groups=(
            WordGroup(
                name="Things",
                has_subjects=True,
                words={kind: OTHER_NAMES.get(kind, ()) for kind in every_kind},
            ),
            WordGroup(
                name="Places",
                has_subjects=True,
                words={
                    phrases[0]: _places(background, phrases)
                    for background, phrases in BACKGROUND_PHRASES.items()
                },
            ),
            WordGroup(
                name="Plain backgrounds",
                has_subjects=True,
                words={f"on a{'n' * (c[0] in 'aeiou')} {c} background": (f"{c} background",)
                       for c in PLAIN},
            ),
            WordGroup(
                name="Colours",
                note=f"Of {coloured}; other things have their own.",
                has_subjects=False,
                words=dict.fromkeys(PAINTS, ()),
            ),
            WordGroup(
                name="Arrangement",
                has_subjects=False,
                words=dict.fromkeys((
                    "in the center", "on the left", "on the right", "at the top", "at the bottom",
                    "to the left of", "to the right of", "above", "below", "in a row",
                    "in a column", "small", "large", WIDE_PHRASES[0], TALL_PHRASES[0],
                ), ()),
            ),
        ),
        examples=EXAMPLES,
    )  # fmt: skip


def _places(background: str, phrases: tuple[str, ...]) -> tuple[str, ...]:
    """Return the spellings of a background beyond its first phrase, without prepositions."""
    names = (background, *(_PREPOSITION.sub("", phrase) for phrase in phrases))
    return tuple(dict.fromkeys(name for name in names if name != phrases[0]))
