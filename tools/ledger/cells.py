"""Cells of the ledger: one way of generating each, and which of them are measured."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

Axis = str

REFERENCE, CONVERGED, AGAIN = "reference", "converged", "again"
# Far beyond what any other cell takes: the image that all deterministic solvers head for.
CONVERGED_SCHEDULER, CONVERGED_STEPS = "DPM++ 2M", 80

_MODES = ("layers2", "cfg2", "tensor2", "tensor2-expert", "cfg2xtensor2")
_PRESETS = ("low", "medium", "high")
_QUANTIZED = ("fp8", "int8", "int4")
# One of each family that heads for the same image; stochastic ones head for others.
_SCHEDULERS = ("DPM++ 2M", "UniPC", "LMS", "IPNDMScheduler", "DEISMultistepScheduler", "Heun")
_FEW = 0.6  # share of the steps in the cells with fewer


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One way of generating: a mode by its name, and values of the settings and of the API."""

    axis: Axis
    mode: str = "single"
    dtype: str = "float32"
    quantization: str = "none"
    acceleration: str = "none"
    scheduler: str = "Default"
    guidance: str = "plain"
    steps: int

    @property
    def name(self) -> str:
        """Return what distinguishes the cell, short and unique."""
        parts = (
            self.axis if self.axis in (REFERENCE, AGAIN) else "",
            "" if self.mode == "single" else self.mode,
            "" if self.dtype == "float32" else self.dtype,
            "" if self.quantization == "none" else self.quantization,
            "" if self.acceleration == "none" else self.acceleration,
            "" if self.guidance == "plain" else self.guidance,
            "" if self.scheduler == "Default" else self.scheduler,
            f"{self.steps} steps",
        )
        return " ".join(filter(None, parts))


def list_cells(steps: int) -> list[Cell]:
    """Return the cells in the order of measuring: each axis against the base, then the pairs.

    Not every combination: modes compute the same numbers whatever the cache, so each axis is tried
    alone, and those together that change each other. The two references come first; the base is
    measured once more at the end, for the noise of seconds and memory.
    """
    base = Cell(axis=REFERENCE, steps=steps)
    return [
        Cell(axis=CONVERGED, scheduler=CONVERGED_SCHEDULER, steps=CONVERGED_STEPS),
        base,
        *_axes(base),
        *_pairs(base),
        replace(base, axis=AGAIN),
    ]


def _axes(base: Cell) -> Iterator[Cell]:
    few = max(2, round(base.steps * _FEW))
    yield from (replace(base, axis="mode", mode=mode) for mode in _MODES)
    yield replace(base, axis="dtype", dtype="bfloat16")
    for scheme in _QUANTIZED:  # as they are served: the rest of the model in bfloat16
        yield replace(base, axis="quantization", quantization=scheme, dtype="bfloat16")
    yield from (replace(base, axis="cache", acceleration=preset) for preset in _PRESETS)
    yield replace(base, axis="guidance", guidance="interval")
    yield replace(base, axis="solver", steps=few)
    for scheduler in _SCHEDULERS:
        yield replace(base, axis="solver", scheduler=scheduler)
    for scheduler in _SCHEDULERS[:2]:
        yield replace(base, axis="solver", scheduler=scheduler, steps=few)


def _pairs(base: Cell) -> Iterator[Cell]:
    pair = replace(base, axis="pair")
    yield replace(pair, dtype="bfloat16", acceleration="high")
    yield replace(pair, dtype="bfloat16", quantization="int8", acceleration="high")
    yield replace(pair, mode="cfg2", acceleration="high")
    yield replace(pair, mode="cfg2", guidance="interval")
    yield replace(pair, acceleration="high", guidance="interval")
    yield replace(pair, acceleration="high", scheduler="DPM++ 2M")
    yield replace(pair, dtype="bfloat16", guidance="interval")
