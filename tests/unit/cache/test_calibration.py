"""The file step_cache.json."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cache.calibration import (
    FILE_NAME,
    UNCALIBRATED,
    Calibration,
    CalibrationError,
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
