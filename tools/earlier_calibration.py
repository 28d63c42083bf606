"""The calibration that a partial one replaces a part of."""

from pathlib import Path

from cache.calibration import Calibration, CalibrationError, load_calibration
from model.loading.fingerprint import fingerprint
from server.runware.errors import CommandError


def load_earlier_calibration(folder: Path, option: str) -> Calibration:
    """Return the calibration in a checkpoint's folder; `option` is what measures a part alone.

    Raises:
        CommandError: there is none, or it is of other weights.
    """
    try:
        calibration = load_calibration(folder, fingerprint(folder))
    except CalibrationError as e:
        raise CommandError(str(e)) from None
    if not calibration.is_calibrated:
        raise CommandError(
            f"{folder} has no step_cache.json yet; run `hyimage calibrate --checkpoint {folder}` "
            f"without {option}"
        )
    return calibration
