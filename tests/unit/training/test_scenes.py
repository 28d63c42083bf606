import random

import numpy as np
import pytest

from training.captions import describe_facts, write_caption
from training.filler import ACTIONS, MAX_CHARACTERS, choose_length, hide_facts, write_prose
from training.latents import SMALL_GRID, train_scene
from training.scenes import (
    COLOURS,
    HELD_PAIRS,
    KINDS,
    OFFERED,
    SQUARE,
    Scene,
    Thing,
    grid_of,
    is_held,
    list_held_scenes,
    make_scene,
)

GRIDS = [*map(grid_of, OFFERED), SMALL_GRID]


@pytest.mark.parametrize("grid", GRIDS)
def test_training_scenes_show_no_held_out_pair_and_keep_objects_inside_and_apart(
    grid: tuple[int, int],
) -> None:
    for index in range(60):
        scene = train_scene(grid, index)
        taken = np.zeros((scene.rows, scene.columns), int)
        for thing in scene.things:
            assert (thing.kind, thing.colour) not in HELD_PAIRS
            assert (thing.kind, f"on {scene.background}") not in HELD_PAIRS
            square = taken[
                thing.row : thing.row + thing.side, thing.column : thing.column + thing.side
            ]
            assert square.shape == (thing.side, thing.side)
            square += 1
        assert taken.max() == 1


def test_a_training_scene_is_the_same_every_time() -> None:
    assert train_scene((16, 16), 7) == train_scene((16, 16), 7)


def test_every_scene_for_scoring_holds_a_pair_that_training_never_shows() -> None:
    assert all(map(is_held, list_held_scenes(50, seed=3, sizes=OFFERED)))


def test_each_coloured_kind_and_each_kind_on_some_backgrounds_is_held_out() -> None:
    assert {kind for kind, other in HELD_PAIRS if other.startswith("on ")} == set(KINDS)
    assert sum(other in COLOURS for _, other in HELD_PAIRS) == 6


def test_a_complete_caption_names_every_object_and_its_colour() -> None:
    rng = random.Random(0)
    for index in range(200):
        scene = train_scene((16, 16), index)
        text = write_caption(scene, rng, is_complete=True).text.lower()
        for thing in scene.things:
            assert thing.colour is None or thing.colour in text
        described = " ".join(describe_facts(scene, rng)).lower()
        assert all(thing.colour is None or thing.colour in described for thing in scene.things)


def test_a_caption_asks_for_another_shape_than_square_only_in_words() -> None:
    rng = random.Random(1)
    asked = 0
    for _ in range(300):
        scene = make_scene(rng, 22, 10)
        caption = write_caption(scene, rng)
        is_asked = any(word in caption.text.lower() for word in ("wide", "landscape"))
        assert is_asked == (caption.ratio_index != SQUARE.index)
        asked += is_asked
    assert 90 < asked < 210


def test_an_object_stands_on_the_side_that_its_caption_says() -> None:
    scene = Scene(16, 16, "red", "beside", (
        Thing("cat", None, "medium", 2, 5), Thing("dog", None, "medium", 9, 5),
    ))  # fmt: skip
    rng = random.Random(2)
    for _ in range(50):
        text = write_caption(scene, rng, is_complete=True).text.lower()
        if " to the left of " in text:
            left, right = text.split(" to the left of ")
            assert "cat" in left or "kitten" in left
            assert "dog" in right or "puppy" in right


def test_prose_mentions_neither_kinds_nor_colours() -> None:
    rng = random.Random(3)
    words = set(" ".join(write_prose(rng, 60000)).lower().replace(",", " ").split())
    assert not words & {*KINDS, *COLOURS, "kitten", "puppy", "tree", "spaceship"}
    assert ACTIONS


def test_hidden_facts_stay_whole_and_in_order_within_the_longest_prompt() -> None:
    rng = random.Random(4)
    for index in range(60):
        facts = describe_facts(train_scene((16, 16), index), rng)
        text = hide_facts(rng, facts, choose_length(rng))
        places = [text.find(fact) for fact in facts]
        assert -1 not in places
        assert places == sorted(places)
        assert len(text) <= MAX_CHARACTERS
