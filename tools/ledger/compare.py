"""Comparison of two ledgers: every change beyond the tolerances and the noise of the measuring."""

from collections.abc import Iterator
from dataclasses import dataclass

from server.runware.errors import CommandError
from tools.ledger.book import Figures, Ledger, find_figures, list_differences, measured
from tools.ledger.cells import AGAIN, REFERENCE

PSNR_TOLERANCE, SHARE_TOLERANCE = 0.1, 0.02  # dB; of the older value, or of all captions
# What depends on the machine and on what else runs there.
_NOISY = ("seconds", "peak_bytes")
_DECIBELS = ("psnr", "least_psnr", "psnr_converged")
_RELATIVE = ("ssim", "ssim_converged", "evaluations", "rows", *_NOISY)


@dataclass(frozen=True, slots=True)
class Noise:
    """How far equal runs lie apart on one machine: seconds and memory in shares, images in dB.

    `psnr` is 99 where they are equal, None where the base was not measured again.
    """

    seconds: float
    peak_bytes: float
    psnr: float | None = None

    @property
    def text(self) -> str:
        """Return a sentence about it."""
        images = "" if self.psnr is None else f", images {self.psnr:.0f} dB (99: equal)"
        return f"equal runs: seconds {self.seconds:.1%} apart, memory {self.peak_bytes:.1%}{images}"


def measure_noise(ledger: Ledger) -> Noise:
    """Return the noise: how far the base cell and its repetition differ, or the images' spread."""
    first = find_figures(ledger.figures, REFERENCE)
    again = find_figures(ledger.figures, AGAIN)
    spreads = [each.seconds_spread or 0.0 for each in measured(ledger.figures)]
    # Images of different sizes spread too: the median cell's spread is that of most of them.
    spread = sorted(spreads)[len(spreads) // 2] if spreads else 0.0
    if first is None or again is None or first.fault or again.fault:
        return Noise(spread, SHARE_TOLERANCE)
    return Noise(
        seconds=max(spread, _change(first.seconds, again.seconds)),
        peak_bytes=max(SHARE_TOLERANCE, _change(first.peak_bytes, again.peak_bytes)),
        psnr=again.psnr,
    )


def list_changes(old: Ledger, new: Ledger) -> list[str]:
    """Return a line for every change of more than 0.1 dB or 2 %, beyond the noise of both.

    Seconds and memory are compared on one machine only.

    Raises:
        CommandError: the ledgers have different prompts, sizes, steps or guidance.
    """
    differing = set(list_differences(old.setup, new.setup))
    if apart := sorted(differing - {"weights", "machine"}):
        raise CommandError(
            f"these ledgers cannot be compared: their {', '.join(apart)} differ; measure with the "
            "same options"
        )
    noises = (measure_noise(old), measure_noise(new))
    noise = Noise(
        2 * max(each.seconds for each in noises), 2 * max(each.peak_bytes for each in noises)
    )
    lines = []
    if "weights" in differing:
        lines.append(f"weights: {old.setup.weights} -> {new.setup.weights}")
    before = {each.cell: each for each in old.figures}
    after = {each.cell: each for each in new.figures}
    lines += [f"{cell}: not measured any more" for cell in before if cell not in after]
    lines += [f"{cell}: new" for cell in after if cell not in before]
    skipped = _NOISY if "machine" in differing else ()
    for cell in before:
        if cell in after:
            lines += _compare(before[cell], after[cell], noise, skipped)
    return lines


def _compare(old: Figures, new: Figures, noise: Noise, skipped: tuple[str, ...]) -> Iterator[str]:
    if old.fault or new.fault:
        if old.fault != new.fault:
            yield f"{old.cell}: {old.fault or 'measured'} -> {new.fault or 'measured'}"
        return
    for name in (*_DECIBELS, *_RELATIVE, "adherence"):
        if name in skipped:
            continue
        before, after = getattr(old, name), getattr(new, name)
        if before is None or after is None:
            how_far = "" if before == after else "not measured in one of them"
        else:
            how_far = _describe(name, before, after, noise)
        if how_far:
            yield f"{old.cell}: {name} {_shown(before)} -> {_shown(after)} ({how_far})"


def _describe(name: str, before: float, after: float, noise: Noise) -> str:
    """Return how far a value has moved, or nothing if that is within its tolerance."""
    if name in _DECIBELS:
        moved = after - before
        return f"{moved:+.2f} dB" if abs(moved) > PSNR_TOLERANCE else ""
    if name == "adherence":
        moved = after - before
        return f"{moved * 100:+.0f} points" if abs(moved) > SHARE_TOLERANCE else ""
    if name in _NOISY:
        least = max(SHARE_TOLERANCE, getattr(noise, name))
        is_beyond = _change(before, after) > least
        return f"{after / before - 1:+.1%}, noise {least:.0%}" if is_beyond else ""
    return f"{after / before - 1:+.1%}" if _change(before, after) > SHARE_TOLERANCE else ""


def _change(before: float | None, after: float | None) -> float:
    """Return the relative change of a value."""
    if not before or after is None:
        return 0.0
    return abs(after / before - 1)


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.5g}"
