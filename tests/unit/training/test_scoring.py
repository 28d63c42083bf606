from pathlib import Path

import numpy as np
import pytest

from pipeline.load import Pipeline, load_pipeline
from pipeline.settings import PipelineSettings
from training.scenes import SQUARE, TOKEN_PX, Scene, Thing, grid_of
from training.scoring import SampleOptions, generate_and_score, generate_scene


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline(PipelineSettings(checkpoint="checkpoints/tiny"))


@pytest.fixture
def cat() -> Scene:
    return Scene(*grid_of(SQUARE), "snow", "center", (Thing("cat", None, "medium", 5, 5),))


def test_each_caption_has_an_image_of_its_scenes_size_from_the_seed_of_its_place(
    pipeline: Pipeline, cat: Scene, art: Path
) -> None:
    options = SampleOptions(num_steps=1, guidance=1.0)
    captioned = [(cat, "a cat in the snow"), (cat, "a cat in the snow")]
    first, second = generate_and_score(pipeline, captioned, options, art)
    assert first.caption == "a cat in the snow"
    assert first.pixels_yx3.shape == (cat.rows * TOKEN_PX, cat.columns * TOKEN_PX, 3)
    assert first.seconds > 0
    again = generate_scene(pipeline, cat, "a cat in the snow", options, seed=1)
    assert np.array_equal(second.pixels_yx3, again)
    assert not np.array_equal(first.pixels_yx3, second.pixels_yx3)


def test_a_negative_prompt_changes_the_image(pipeline: Pipeline, cat: Scene) -> None:
    without, negated = (
        generate_scene(
            pipeline,
            cat,
            "a cat",
            SampleOptions(num_steps=1, guidance=3.0, negative_prompt=negative),
            seed=0,
        )
        for negative in (None, "red")
    )
    assert not np.array_equal(without, negated)
