from pathlib import Path

import pytest
from PIL import Image

from pipeline.load import Pipeline, load_pipeline
from pipeline.settings import PipelineSettings
from tools.bench.adherence import (
    measure_adherence,
    measure_found_in_prose,
    measure_negated_colour,
    measure_right_shapes,
)
from training.scoring import SampleOptions

OPTIONS = SampleOptions(num_steps=1, guidance=2.0)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline(PipelineSettings(checkpoint="checkpoints/tiny"))


def test_a_row_has_its_setting_and_shares_and_the_first_images_are_on_a_sheet(
    pipeline: Pipeline, art: Path, tmp_path: Path
) -> None:
    row = measure_adherence(pipeline, art, OPTIONS, 2, tmp_path / "sheet.png")
    assert (row.guidance, row.steps, row.count) == (2.0, 1, 2)
    assert all(0 <= share <= 1 for share in (row.background, row.position, row.kind, row.all))
    assert row.seconds > 0
    assert (row.guidance_plan, row.rows) == ("plain", 1.0)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 0


def test_other_measurements_return_shares(pipeline: Pipeline, art: Path) -> None:
    red = measure_negated_colour(pipeline, art, OPTIONS, 1)
    assert {red.without_negative, red.with_negative} <= {0.0, 1.0}
    assert measure_found_in_prose(pipeline, art, OPTIONS, 1) in (0.0, 1.0)


def test_the_tiny_checkpoint_picks_the_shape_that_a_caption_asks_for(pipeline: Pipeline) -> None:
    assert measure_right_shapes(pipeline, 6).all == 1.0
