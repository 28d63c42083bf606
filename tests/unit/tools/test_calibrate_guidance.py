"""Calibration of the guidance: which bound is chosen, by adherence and by nearness."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cache.calibration import UNCALIBRATED, save_calibration
from model.loading.fingerprint import fingerprint
from pipeline.load import Pipeline, load_pipeline
from pipeline.settings import PipelineSettings
from server.runware.errors import CommandError
from tools.calibrate_guidance import (
    BoundSweep,
    Tried,
    calibrate_guidance,
    choose_by_adherence,
    choose_by_nearness,
    find_art,
    recalibrate_guidance,
)


def tried(*pairs: tuple[float, float]) -> list[Tried]:
    return [Tried(high, score, rows=high) for high, score in pairs]


def test_the_lowest_bound_that_is_as_good_as_the_best_is_chosen() -> None:
    assert choose_by_adherence(tried((1.0, 0.45), (0.9, 0.6), (0.8, 0.65), (0.7, 0.59))) == 0.8
    assert choose_by_adherence(tried((1.0, 0.45), (0.9, 0.65), (0.8, 0.6), (0.7, 0.5))) == 0.8
    assert choose_by_adherence(tried((1.0, 0.7), (0.9, 0.6))) == 1.0


def test_the_lowest_bound_that_stays_near_is_chosen_or_none() -> None:
    assert choose_by_nearness(tried((1.0, 1.0), (0.9, 0.95), (0.8, 0.89))) == 0.9
    assert choose_by_nearness(tried((0.9, 0.5), (0.8, 0.4))) == 1.0


def test_only_a_checkpoint_that_draws_the_training_s_things_is_scored(
    tiny_checkpoint: Path, art: Path
) -> None:
    assert find_art(Path("checkpoints/tiny"), art) == art
    assert find_art(tiny_checkpoint, art) is None


def test_a_checkpoint_without_a_calibration_is_sent_to_the_whole_one(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    settings = PipelineSettings(checkpoint=str(tiny_checkpoint))
    with pytest.raises(CommandError, match="without --guidance-only"):
        recalibrate_guidance(settings, ["a red fox"], tmp_path)


def test_nothing_but_the_interval_is_measured_again(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    before = replace(UNCALIBRATED, fingerprint=fingerprint(folder), tea_scale=0.4)
    save_calibration(folder, before)
    reported: list[tuple[str, int, int]] = []
    settings = PipelineSettings(checkpoint=str(folder))
    recalibrate_guidance(
        settings, ["a red fox"], tmp_path, lambda *progress: reported.append(progress)
    )
    loaded = load_pipeline(settings).calibration
    assert replace(loaded, guidance=None) == before
    assert loaded.guidance is not None
    assert loaded.guidance.measure == "nearness"
    rows = [row["rows"] for row in loaded.guidance.candidates]
    assert rows[0] == 1.0
    assert rows == sorted(rows, reverse=True)
    assert loaded.guidance.candidates[0]["score"] == 1.0
    assert reported[-1] == ("guiding", 6, 6)


def test_captions_of_the_trained_checkpoint_are_scored(tiny_trained: Pipeline, art: Path) -> None:
    sweep = BoundSweep(bounds=(1.0, 0.8), num_steps=2, num_captions=1)
    interval = calibrate_guidance(tiny_trained, (), art, sweep=sweep)
    assert (interval.measure, interval.n, interval.steps) == ("adherence", 1, 2)
    assert {row["score"] for row in interval.candidates} <= {0.0, 1.0}


@pytest.fixture(scope="module")
def tiny_trained() -> Pipeline:
    return load_pipeline(PipelineSettings(checkpoint="checkpoints/tiny"))
