"""Step cache calibration of a checkpoint: the file step_cache.json. Free of torch."""

import json
import re
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

FILE_NAME = "step_cache.json"
DEFAULT_DISTANCE, DEFAULT_THRESHOLD = 0.5, 0.25
UNCALIBRATED_FB_THRESHOLD = 0.12


# A JSON list of numbers alone.
_NUMBERS = re.compile(r"\[[-+0-9.eE,\s]+\]")


class CalibrationError(ValueError):
    """step_cache.json cannot be used; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidanceInterval:
    """The noise levels [low, high] in which this checkpoint is guided by the preset `interval`.

    `measure` is what chose `high` among the `candidates`: `adherence`, the share of captions that
    came out right, or `nearness`, the SSIM to images that are guided at every step. Measured at
    the guidance scale `scale` with `steps` steps and `n` images for each candidate.
    """

    low: float
    high: float
    measure: str
    scale: float
    steps: int
    n: int
    candidates: tuple[dict[str, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedGrid:
    """Sigmas fitted to this checkpoint, for guidance scales from `guidance[0]` to below the next.

    They fall from exactly 1 to exactly 0; a grid of n steps has n + 1.
    """

    guidance: tuple[float, float]
    sigmas: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """The relation of signal changes to output changes, measured for one checkpoint.

    `poly` (highest power first) maps the signal's relative change, held to `x_range`, to
    that of the layers' output; empty when no fit was good enough, and then `profile` holds
    (sigma, accumulated output change) pairs, falling in sigma. `tea_scale` is the TeaCache
    threshold that the distance 1 stands for, `fb_threshold` the FBCache threshold of the API's
    default. `guidance` is None where no interval was calibrated.
    """

    fingerprint: str
    signal: str
    poly: tuple[float, ...]
    x_range: tuple[float, float]
    profile: tuple[tuple[float, float], ...]
    tea_scale: float
    fb_threshold: float
    steps: tuple[int, ...]
    shift: float
    n: int
    rmse: float
    r2: float
    sweep: tuple[dict[str, float | str], ...]
    guidance: GuidanceInterval | None = None
    grids: tuple[FittedGrid, ...] = ()

    @property
    def is_calibrated(self) -> bool:
        return bool(self.fingerprint)

    def find_grid(self, num_steps: int, guidance: float) -> tuple[float, ...] | None:
        """Return the fitted sigmas for so many steps and this guidance scale, if there are any."""
        for grid in self.grids:
            low, high = grid.guidance
            if len(grid.sigmas) == num_steps + 1 and low <= guidance < high:
                return grid.sigmas
        return None


# Without a calibration the signal's change is taken for the output's.
UNCALIBRATED = Calibration(
    fingerprint="",
    signal="input",
    poly=(1.0, 0.0),
    x_range=(0.0, 1.0),
    profile=(),
    tea_scale=1.0,
    fb_threshold=UNCALIBRATED_FB_THRESHOLD,
    steps=(),
    shift=0.0,
    n=0,
    rmse=0.0,
    r2=0.0,
    sweep=(),
)


def save_calibration(folder: Path, calibration: Calibration) -> Path:
    """Write step_cache.json into a checkpoint's folder, replacing an older one as a whole."""
    path = folder / FILE_NAME
    partial = path.with_name(f".{FILE_NAME}.partial")
    text = _NUMBERS.sub(_on_one_line, json.dumps(asdict(calibration), indent=2))
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def load_calibration(folder: Path, fingerprint: str) -> Calibration:
    """Return a checkpoint's calibration, or UNCALIBRATED if it has none.

    Raises:
        CalibrationError: the file is damaged, or belongs to other weights.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return UNCALIBRATED
    again = f"run `hyimage calibrate --checkpoint {folder}` again, or delete the file"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        calibration = _parse(raw)
    except (ValueError, TypeError, KeyError) as e:
        raise CalibrationError(f"{path} cannot be read ({e}); {again}") from None
    if calibration.fingerprint != fingerprint:
        raise CalibrationError(
            f"{path} was made for weights with the fingerprint {calibration.fingerprint}, and "
            f"these have {fingerprint}; {again}"
        )
    return calibration


def _parse(raw: dict[str, Any]) -> Calibration:
    names = {field.name for field in fields(Calibration)}
    needed = {field.name for field in fields(Calibration) if field.default is MISSING}
    if not needed <= set(raw) <= names:
        raise ValueError(f"its fields are {sorted(raw)}, not {sorted(names)}")
    x_min, x_max = raw["x_range"]
    values = {
        **raw,
        "poly": _floats(raw["poly"]),
        "x_range": (float(x_min), float(x_max)),
        "profile": tuple((float(sigma), float(change)) for sigma, change in raw["profile"]),
        "steps": tuple(int(steps) for steps in raw["steps"]),
        "sweep": tuple(dict(row) for row in raw["sweep"]),
        "guidance": _parse_guidance(raw.get("guidance")),
        "grids": tuple(_parse_grid(grid) for grid in raw.get("grids", ())),
    }
    calibration = Calibration(**values)
    if not calibration.poly and not calibration.profile:
        raise ValueError("it holds neither a polynomial nor a profile")
    if not calibration.tea_scale > 0 or not calibration.fb_threshold > 0:
        raise ValueError("tea_scale and fb_threshold must be above 0")
    return calibration


def _parse_guidance(raw: dict[str, Any] | None) -> GuidanceInterval | None:
    """Return the calibrated interval of the guidance; files of older versions have none."""
    if raw is None:
        return None
    interval = GuidanceInterval(
        **{**raw, "candidates": tuple(dict(row) for row in raw["candidates"])}
    )
    if not 0 <= interval.low < interval.high <= 1:
        raise ValueError(f"guidance.low and .high are {interval.low} and {interval.high}")
    return interval


def _parse_grid(raw: dict[str, Any]) -> FittedGrid:
    """Return a fitted grid; files of older versions have none."""
    low, high = _floats(raw["guidance"])
    sigmas = _floats(raw["sigmas"])
    falls = all(before > after for before, after in pairwise(sigmas))
    if not falls or len(sigmas) < 2 or (sigmas[0], sigmas[-1]) != (1.0, 0.0):
        raise ValueError(f"a grid must fall from 1 to 0, and one is {list(sigmas)}")
    return FittedGrid(guidance=(low, high), sigmas=sigmas)


def _on_one_line(numbers: re.Match[str]) -> str:
    return " ".join(numbers[0].split()).replace("[ ", "[").replace(" ]", "]")


def _floats(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
