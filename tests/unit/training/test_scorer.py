from pathlib import Path

import numpy as np
import pytest

from training.backgrounds import paint_background
from training.scenes import SQUARE, Scene, Thing, grid_of, list_held_scenes, paint_scene
from training.scorer import Score, find_kinds, measure_ceiling, score_image, summarize


def test_scenes_as_painted_are_all_right(art: Path) -> None:
    held = list_held_scenes(12, seed=5, sizes=(SQUARE,))
    assert measure_ceiling(held, art)["all"] == 1.0


def two_things(background: str, colour: str, kind: str, column: int) -> Scene:
    things = (Thing("cat", None, "medium", 1, 5), Thing(kind, colour, "medium", column, 5))
    return Scene(*grid_of(SQUARE), background, "beside", things)


@pytest.mark.parametrize(
    ("generated", "wrong"),
    [
        (two_things("snow", "red", "car", 9), "background"),
        (two_things("blue", "green", "car", 9), "colour"),
        (two_things("blue", "red", "star", 9), "kind"),
        (two_things("blue", "red", "car", 6), "position"),
    ],
)
def test_each_mistake_is_found_and_named(art: Path, generated: Scene, wrong: str) -> None:
    wanted = two_things("blue", "red", "car", 9)
    score = score_image(paint_scene(generated, art), wanted, art)
    assert not getattr(score, wrong)
    assert not score.all


def test_noise_is_not_taken_for_a_scene(art: Path) -> None:
    noise_yx3 = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    assert not score_image(noise_yx3, two_things("blue", "red", "car", 9), art).position


def test_shares_count_images() -> None:
    scores = [Score(True, True, False, True), Score(True, True, True, True)]
    assert summarize(scores) == {
        "background": 1.0,
        "position": 1.0,
        "kind": 0.5,
        "colour": 1.0,
        "all": 0.5,
    }


@pytest.mark.parametrize("column", [9, 11])
def test_things_are_found_wherever_they_stand(art: Path, column: int) -> None:
    scene = two_things("blue", "red", "car", column)
    assert find_kinds(paint_scene(scene, art), art) == {thing.kind for thing in scene.things}


def test_nothing_is_found_where_nothing_is(art: Path) -> None:
    assert find_kinds(paint_background("blue", 1024, 1024), art) == set()
