"""Image quality of solvers, grids, step caches and presets: PSNR, SSIM, evaluations, rows.

Every image is compared with two: a converged one, of so many steps that more change nothing, which
is what all solvers head for; and the uncached Euler image of the base number of steps, which a
cache tries to save work on. The best plain solver with as many evaluations is the bar: below it,
fewer steps would be the better cache.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from pipeline.load import Pipeline
from pipeline.request import ImageRequest
from tools.bench.images import generate_pixels
from tools.bench.quality_settings import Setting, Sweep, list_settings, plain
from tools.bench.quality_store import Cell, Store
from tools.progress import Report, ignore
from tools.similarity import MAX_PSNR, Pixels, psnr, ssim

# Source: tiny checkpoint, guidance 7, 2026-11-25: 100 steps of UniPC and of Euler are 51 dB apart
# in pixels, 200 of LMS as far from both.
TRUTH_SCHEDULER = "UniPC"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A setting's figures over the prompts. PSNR in dB, seconds with decoding.

    `psnr` and `ssim` are medians against the converged image, `psnr_min` and `ssim_min` the worst
    prompt's, and half of the prompts lie between `psnr_low` and `psnr_high`. `base_psnr` and
    `base_ssim` are medians against the uncached image. `solver_psnr` and `solver_psnr_min` are
    those of `solver`, the best plain solver with as many evaluations.
    """

    policy: str
    threshold: float | None
    scheduler: str
    steps: int
    evaluations: float
    rows: float
    saving: float
    psnr: float
    psnr_min: float
    psnr_low: float
    psnr_high: float
    ssim: float
    ssim_min: float
    base_psnr: float
    base_psnr_min: float
    base_ssim: float
    solver: str | None
    solver_psnr: float | None
    solver_psnr_min: float | None
    seconds: float


def run_quality_bench(
    pipeline: Pipeline,
    requests: Sequence[ImageRequest],
    base_steps: int,
    sweep: Sweep,
    store: Store,
    only: Sequence[str] = (),
    report: Report = ignore,
) -> Iterator[Row]:
    """Measure every request with every setting of the sweep; yield a row after each setting.

    `only` are beginnings of policies; without any, all are measured. What the store holds already
    is not generated again.
    """
    settings = [
        setting
        for setting in list_settings(base_steps, sweep)
        if not only or setting.policy.startswith(tuple(only))
    ]
    bench = _Bench(pipeline, store, base_steps, sweep.truth_steps)
    solvers: list[Row] = []
    for number, setting in enumerate(settings):
        cells = []
        for index, request in enumerate(requests):
            report("images", number * len(requests) + index, len(settings) * len(requests))
            cells.append(bench.measure(setting, request))
        row = summarize(setting, cells, base_steps)
        if setting.is_plain_solver:
            solvers.append(row)
            yield row
        else:
            yield beside_solvers(row, solvers)
    report("images", len(settings) * len(requests), len(settings) * len(requests))


class _Bench:
    """Generates cells, with each prompt's two references from the store."""

    def __init__(self, pipeline: Pipeline, store: Store, base_steps: int, truth_steps: int) -> None:
        self._pipeline = pipeline
        self._store = store
        self._base = plain("Euler", base_steps)
        self._truth = plain(TRUTH_SCHEDULER, truth_steps)

    def measure(self, setting: Setting, request: ImageRequest) -> Cell:
        """Return a cell of the store, or generate and store it."""
        references = (self._truth, self._base)
        keys = [self._store.key(reference, request) for reference in references]
        key = self._store.key(setting, request, *keys)
        if (known := self._store.find(key)) is not None:
            return known
        truth, base = (
            self._store.image(name, partial(self._pixels, reference, request))
            for name, reference in zip(keys, references, strict=True)
        )
        done = generate_pixels(self._pipeline, _request_of(setting, request))
        cell = Cell(
            key=key,
            psnr=min(psnr(done.pixels_yx3, truth), MAX_PSNR),
            ssim=ssim(done.pixels_yx3, truth),
            base_psnr=min(psnr(done.pixels_yx3, base), MAX_PSNR),
            base_ssim=ssim(done.pixels_yx3, base),
            evaluations=done.num_evaluations,
            rows=done.num_rows,
            seconds=done.seconds,
        )
        self._store.add(cell)
        return cell

    def _pixels(self, setting: Setting, request: ImageRequest) -> Pixels:
        return generate_pixels(self._pipeline, _request_of(setting, request)).pixels_yx3


def _request_of(setting: Setting, request: ImageRequest) -> ImageRequest:
    return replace(
        request,
        scheduler=setting.scheduler,
        num_steps=setting.num_steps,
        cache=setting.plan,
        is_grid_fitted=setting.is_grid_fitted,
    )


def summarize(setting: Setting, cells: Sequence[Cell], base_steps: int) -> Row:
    """Return the row of a setting's cells, without a solver beside it."""
    psnrs = [cell.psnr for cell in cells]
    low, _, high = statistics.quantiles(psnrs, n=4, method="inclusive") if cells[1:] else psnrs * 3
    evaluations = statistics.mean(cell.evaluations for cell in cells)
    return Row(
        policy=setting.policy,
        threshold=setting.threshold,
        scheduler=setting.scheduler,
        steps=setting.num_steps,
        evaluations=evaluations,
        rows=statistics.mean(cell.rows for cell in cells),
        saving=base_steps / evaluations,
        psnr=statistics.median(psnrs),
        psnr_min=min(psnrs),
        psnr_low=low,
        psnr_high=high,
        ssim=statistics.median(cell.ssim for cell in cells),
        ssim_min=min(cell.ssim for cell in cells),
        base_psnr=statistics.median(cell.base_psnr for cell in cells),
        base_psnr_min=min(cell.base_psnr for cell in cells),
        base_ssim=statistics.median(cell.base_ssim for cell in cells),
        solver=None,
        solver_psnr=None,
        solver_psnr_min=None,
        seconds=statistics.median(cell.seconds for cell in cells),
    )


def beside_solvers(row: Row, solvers: Sequence[Row]) -> Row:
    """Return a row with the plain solver that is best with as many evaluations.

    Between two numbers of steps a solver's figures lie on a straight line; where it was not
    measured on both sides it is no bar.
    """
    best = row
    for name in dict.fromkeys(solver.scheduler for solver in solvers):
        rows = [solver for solver in solvers if solver.scheduler == name]
        below = [solver for solver in rows if solver.evaluations <= row.evaluations]
        above = [solver for solver in rows if solver.evaluations >= row.evaluations]
        if not below or not above:
            continue
        low = max(below, key=lambda solver: solver.evaluations)
        high = min(above, key=lambda solver: solver.evaluations)
        way = high.evaluations - low.evaluations
        share = (row.evaluations - low.evaluations) / way if way else 0.0
        middle = low.psnr + share * (high.psnr - low.psnr)
        if best.solver_psnr is None or middle > best.solver_psnr:
            worst = low.psnr_min + share * (high.psnr_min - low.psnr_min)
            best = replace(row, solver=name, solver_psnr=middle, solver_psnr_min=worst)
    return best
