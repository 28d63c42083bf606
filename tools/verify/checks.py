"""Comparisons with recorded tensors, values and images."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Source: `uint8_tolerance` of the recorded cases.
MAX_PIXEL_ERROR = 2
MEAN_PIXEL_ERROR = 0.02


@dataclass(frozen=True, slots=True)
class Check:
    """A row of the report."""

    group: str
    name: str
    shape: str
    max_error: float | None
    tolerance: str
    is_ok: bool
    note: str = ""


def compare_tensors(group: str, name: str, ours: Tensor, recorded: Tensor, tolerance: Any) -> Check:
    """Compare with a tolerance of the manifest: "exact", or atol + rtol * |recorded|."""
    shape = "x".join(map(str, recorded.shape))
    if ours.shape != recorded.shape:
        note = f"our shape is {list(ours.shape)}"
        return Check(group, name, shape, None, _describe(tolerance), is_ok=False, note=note)
    difference = (ours.cpu().double() - recorded.double()).abs()
    max_error = difference.max().item() if difference.numel() else 0.0
    if tolerance == "exact":
        is_ok = torch.equal(ours.cpu().double(), recorded.double())
    else:
        limit = tolerance["atol"] + tolerance.get("rtol", 0) * recorded.double().abs()
        is_ok = bool((difference <= limit).all())  # a NaN is not
    return Check(group, name, shape, max_error, _describe(tolerance), is_ok)


def compare_values(group: str, name: str, ours: object, recorded: object) -> Check:
    """Compare anything else for equality."""
    is_ok = ours == recorded
    note = "" if is_ok else f"ours {str(ours)[:120]}, recorded {str(recorded)[:120]}"
    return Check(group, name, "", None if is_ok else 1.0, "exact", is_ok, note)


def compare_images(group: str, name: str, ours_yx3: Tensor, recorded_yx3: Tensor) -> Check:
    """Compare two images, uint8, allowing for rounding."""
    shape = "x".join(map(str, recorded_yx3.shape))
    tolerance = f"max {MAX_PIXEL_ERROR}, mean {MEAN_PIXEL_ERROR}"
    if ours_yx3.shape != recorded_yx3.shape:
        note = f"our shape is {list(ours_yx3.shape)}"
        return Check(group, name, shape, None, tolerance, is_ok=False, note=note)
    error = (ours_yx3.cpu().float() - recorded_yx3.float()).abs()
    is_ok = bool(error.max() <= MAX_PIXEL_ERROR and error.mean() <= MEAN_PIXEL_ERROR)
    note = f"mean {error.mean():.4f}"
    return Check(group, name, shape, error.max().item(), tolerance, is_ok, note)


def left_out(group: str, names: Iterable[str]) -> list[Check]:
    """Return a failed row for every recorded thing that no check has looked at."""
    note = "recorded, but no check looked at it"
    return [Check(group, name, "", None, "", is_ok=False, note=note) for name in sorted(names)]


def _describe(tolerance: Any) -> str:
    if not isinstance(tolerance, dict):
        return str(tolerance)
    return f"{tolerance['atol']:g} + {tolerance.get('rtol', 0):g} rel"
