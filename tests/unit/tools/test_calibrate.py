import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cache.calibration import DEFAULT_DISTANCE, UNCALIBRATED, load_calibration
from model.loading.fingerprint import fingerprint
from pipeline.load import Pipeline, load_pipeline
from pipeline.request import ImageRequest
from pipeline.settings import PipelineSettings
from tools.calibrate import calibrate_checkpoint, record
from tools.calibration_sweep import (
    DEFAULT_SAVING,
    MOST_SAVING,
    Swept,
    choose_defaults,
    list_thresholds,
    sweep_thresholds,
    threshold_for,
)

ROWS = [Swept("teaCache", 0.1, 1.0, 40.0), Swept("teaCache", 0.3, 2.0, 30.0)]


def test_a_recording_notes_every_step_but_the_first(
    tiny_pipeline: Pipeline, image_request: ImageRequest
) -> None:
    recorder, latent_BCYX = record(tiny_pipeline, replace(image_request, num_steps=5))
    assert latent_BCYX.shape[0] == 1
    assert len(recorder.changes) == len(recorder.first_changes) == 4
    assert all(change.output > 0 for change in recorder.changes)
    assert recorder.changes[0].previous_sigma > recorder.changes[0].sigma


def test_a_threshold_lies_straight_between_the_swept_ones_or_at_the_nearest_end() -> None:
    assert threshold_for(ROWS, 1.5) == pytest.approx(0.2)
    assert threshold_for(ROWS, 5.0) == 0.3
    assert threshold_for(ROWS, 0.5) == 0.1


def test_the_defaults_save_what_they_should() -> None:
    fb = [Swept("fbCache", 0.1, 1.0, 40.0), Swept("fbCache", 0.3, 2.0, 30.0)]
    chosen = choose_defaults(UNCALIBRATED, [*ROWS, *fb])
    assert chosen.tea_scale * DEFAULT_DISTANCE == pytest.approx(threshold_for(ROWS, DEFAULT_SAVING))
    assert chosen.fb_threshold >= threshold_for(fb, DEFAULT_SAVING)
    assert chosen.fb_threshold / 0.75 >= threshold_for(fb, MOST_SAVING) * 0.99
    assert len(chosen.sweep) == 4


def test_higher_thresholds_never_evaluate_more(
    tiny_pipeline: Pipeline, image_request: ImageRequest
) -> None:
    requests = [replace(image_request, num_steps=8)]
    thresholds = list_thresholds([0.1, 0.2, 0.3], [0.2])
    assert thresholds[0][0] == "teaCache"
    assert thresholds[0][1] == pytest.approx(0.24)
    reported: list[tuple[str, int, int]] = []
    swept = sweep_thresholds(
        tiny_pipeline, UNCALIBRATED, [("teaCache", 0.001), ("teaCache", 10.0), ("fbCache", 10.0)],
        requests, lambda *progress: reported.append(progress),
    )  # fmt: skip
    assert [row.policy for row in swept] == ["teaCache", "teaCache", "fbCache"]
    assert swept[0].saving <= swept[1].saving
    assert swept[1].saving > 1.5
    assert reported == [("sweeping", n, 4) for n in (1, 2, 3, 4)]


@pytest.mark.slow
def test_a_calibrated_checkpoint_loads_with_what_was_measured(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    settings = PipelineSettings(checkpoint=str(folder))
    result = calibrate_checkpoint(settings, ["a red fox", "a blue bird", "a tree"], tmp_path)
    assert result.path == folder / "step_cache.json"
    interval = result.calibration.guidance
    assert interval is not None
    assert (interval.measure, interval.n, len(interval.candidates)) == ("nearness", 3, 6)
    assert result.chart.read_bytes()[:4] == b"\x89PNG"
    assert load_calibration(folder, fingerprint(folder)) == result.calibration
    loaded = load_pipeline(settings)
    assert loaded.calibration == result.calibration
    assert loaded.preview_map is not None
    assert loaded.preview_map.r2 == result.preview.r2 > 0.5
    assert json.loads(result.path.read_text())["n"] == result.calibration.n == 3 * 19
    sigmas = list(result.changes)
    assert sigmas == sorted(sigmas, reverse=True)
