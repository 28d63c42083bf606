"""The file step_cache.json."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cache.calibration import (
    FILE_NAME,
    UNCALIBRATED,
    Calibration,
    CalibrationError,
    FittedGrid,
    GuidanceInterval,
    load_calibration,
    save_calibration,
)

CALIBRATION = Calibration(
    fingerprint="0123456789abcdef",
    signal="input",
    poly=(2.0, 0.0, 0.01),
    x_range=(0.01, 0.2),
    profile=(),
    tea_scale=0.4,
    fb_threshold=0.08,
    steps=(20, 30),
    shift=3.0,
    n=100,
    rmse=0.01,
    r2=0.9,
    sweep=({"policy": "teaCache", "threshold": 0.2, "saving": 1.5, "psnr": 31.0},),
)


def test_a_calibration_is_read_back_as_written(tmp_path: Path) -> None:
    save_calibration(tmp_path, CALIBRATION)
    assert load_calibration(tmp_path, CALIBRATION.fingerprint) == CALIBRATION


def test_an_interval_of_the_guidance_is_read_back_and_may_be_left_out(tmp_path: Path) -> None:
    interval = GuidanceInterval(
        low=0.0,
        high=0.8,
        measure="adherence",
        scale=7.0,
        steps=20,
        n=24,
        candidates=({"high": 0.8, "score": 0.6, "rows": 0.775},),
    )
    path = save_calibration(tmp_path, replace(CALIBRATION, guidance=interval))
    assert load_calibration(tmp_path, CALIBRATION.fingerprint).guidance == interval
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({key: raw[key] for key in raw if key != "guidance"}))
    assert load_calibration(tmp_path, CALIBRATION.fingerprint) == CALIBRATION
    path.write_text(json.dumps({**raw, "guidance": {**raw["guidance"], "high": 1.5}}))
    with pytest.raises(CalibrationError, match=r"guidance\.low and \.high are 0\.0 and 1\.5"):
        load_calibration(tmp_path, CALIBRATION.fingerprint)


def test_no_file_is_no_calibration(tmp_path: Path) -> None:
    assert load_calibration(tmp_path, "any") == UNCALIBRATED
    assert not UNCALIBRATED.is_calibrated


def test_a_calibration_of_other_weights_is_refused(tmp_path: Path) -> None:
    save_calibration(tmp_path, CALIBRATION)
    with pytest.raises(CalibrationError, match=r"0123456789abcdef.*hyimage calibrate"):
        load_calibration(tmp_path, "fedcba9876543210")


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw.pop("poly"),
        lambda raw: raw.update(surprise=1),
        lambda raw: raw.update(poly=[]),
        lambda raw: raw.update(x_range=[1]),
        lambda raw: raw.update(tea_scale=-1.0),
        lambda raw: raw.update(poly=["a"]),
    ],
)
def test_a_damaged_calibration_is_refused(
    tmp_path: Path, damage: Callable[[dict[str, object]], object]
) -> None:
    path = save_calibration(tmp_path, CALIBRATION)
    raw = json.loads(path.read_text())
    damage(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(CalibrationError, match=FILE_NAME):
        load_calibration(tmp_path, CALIBRATION.fingerprint)


GRIDS = (
    FittedGrid(guidance=(1.0, 6.0), sigmas=(1.0, 0.8, 0.0)),
    FittedGrid(guidance=(6.0, 50.0), sigmas=(1.0, 0.9, 0.0)),
)


def test_fitted_grids_are_found_by_steps_and_guidance(tmp_path: Path) -> None:
    path = save_calibration(tmp_path, replace(CALIBRATION, grids=GRIDS))
    loaded = load_calibration(tmp_path, CALIBRATION.fingerprint)
    assert loaded.grids == GRIDS
    assert loaded.find_grid(2, 5.0) == GRIDS[0].sigmas
    assert loaded.find_grid(2, 6.0) == GRIDS[1].sigmas
    assert loaded.find_grid(3, 5.0) is None
    assert loaded.find_grid(2, 50.0) is None
    assert '"sigmas": [1.0, 0.8, 0.0]' in path.read_text()  # a list of numbers is one line


@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 0.5], [0.9, 0.0], [1.0, 0.5, 0.5, 0.0]])
def test_a_grid_that_does_not_fall_from_one_to_zero_is_refused(
    tmp_path: Path, sigmas: list[float]
) -> None:
    path = save_calibration(tmp_path, replace(CALIBRATION, grids=GRIDS))
    raw = json.loads(path.read_text())
    raw["grids"][0]["sigmas"] = sigmas
    path.write_text(json.dumps(raw))
    with pytest.raises(CalibrationError, match="fall from 1 to 0"):
        load_calibration(tmp_path, CALIBRATION.fingerprint)
