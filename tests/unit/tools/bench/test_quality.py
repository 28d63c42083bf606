"""The frontier of `hyimage bench quality`: cells that are kept, rows, and solvers beside them."""

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cache.calibration import UNCALIBRATED
from cache.plan import NO_REUSE
from cli.bench.quality import write_rows
from pipeline.load import Pipeline
from pipeline.request import ImageRequest
from tools.bench.quality import Row, beside_solvers, run_quality_bench, summarize
from tools.bench.quality_charts import plot_quality_chart
from tools.bench.quality_settings import Sweep, list_settings, plain, preset
from tools.bench.quality_store import Cell, Store
from tools.progress import Report, ignore

SWEEP = Sweep(
    truth_steps=8,
    euler_steps=(4, 5),
    fitted_steps=(),
    tea_distances=(1.0,),
    fb_threshold_scales=(),
    forecast_distances=(),
    intervals=((1, 2),),
    schedulers=(),
    presets=("high",),
    preset_steps=(6,),
)


def cell(psnr: float, evaluations: int = 8) -> Cell:
    return Cell(
        key=f"{psnr}", psnr=psnr, ssim=psnr / 100, base_psnr=50.0, base_ssim=0.9,
        evaluations=evaluations, rows=2 * evaluations, seconds=1.0,
    )  # fmt: skip


def row(scheduler: str, evaluations: int, psnr: float) -> Row:
    return summarize(plain(scheduler, evaluations), [cell(psnr, evaluations)], 30)


@pytest.fixture
def small(image_request: ImageRequest) -> list[ImageRequest]:
    return [replace(image_request, guidance=1.0)]


@pytest.fixture
def bench(
    tiny_pipeline: Pipeline, tiny_checkpoint: Path, small: list[ImageRequest], tmp_path: Path
) -> "Bench":
    return Bench(tiny_pipeline, tiny_checkpoint, small, tmp_path / "kept")


class Bench:
    """A small sweep, measured again and again into one folder."""

    def __init__(
        self, pipeline: Pipeline, checkpoint: Path, requests: list[ImageRequest], folder: Path
    ) -> None:
        self.pipeline, self.checkpoint, self.folder = pipeline, checkpoint, folder
        self.requests = requests

    def run(self, report: Report = ignore, only: tuple[str, ...] = ()) -> Iterator[Row]:
        store = Store(self.folder, self.pipeline, self.checkpoint)
        return run_quality_bench(self.pipeline, self.requests, 6, SWEEP, store, only, report)

    def lines(self) -> list[str]:
        return (self.folder / "cells.jsonl").read_text().splitlines()


def test_a_row_follows_each_setting_and_the_base_is_its_own_image(bench: Bench) -> None:
    reported: list[tuple[str, int, int]] = []
    rows = list(bench.run(lambda *r: reported.append(r)))
    settings = list(list_settings(6, SWEEP))
    assert [row.policy for row in rows] == [setting.policy for setting in settings]
    assert [row.steps for row in rows] == [4, 5, 6, 6, 6, 6]
    assert rows[2].base_psnr == 99
    assert rows[2].psnr < 99
    assert all(row.rows == row.evaluations for row in rows)  # without guidance there is one row
    assert all(row.solver == "Euler" for row in rows[3:] if row.evaluations >= 4)
    assert reported[-1] == ("images", len(settings), len(settings))


def test_a_run_that_was_stopped_goes_on_where_it_was(bench: Bench) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(bench.run(stop))
    assert len(bench.lines()) == 3
    with (bench.folder / "cells.jsonl").open("a") as file:
        file.write('{"key": "cut sh')
    first = list(bench.run())
    assert len(bench.lines()) == len(first) == 6
    kept = {path: path.stat().st_mtime_ns for path in bench.folder.glob("*.npy")}
    assert len(kept) == 2  # the converged image and the uncached one
    assert list(bench.run()) == first
    assert len(bench.lines()) == 6
    assert {path: path.stat().st_mtime_ns for path in bench.folder.glob("*.npy")} == kept


def test_only_the_named_policies_are_measured(bench: Bench) -> None:
    rows = list(bench.run(only=("preset", "every")))
    assert [row.policy for row in rows] == ["preset high", "every n-th, order 1"]
    assert rows[0].solver is None  # no solver was measured


def test_a_cell_s_key_changes_with_what_its_image_depends_on(
    bench: Bench, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (request,) = bench.requests
    store = Store(tmp_path / "a", bench.pipeline, tiny_checkpoint)
    calibrated = replace(bench.pipeline, calibration=replace(UNCALIBRATED, tea_scale=0.3))
    other = Store(tmp_path / "b", calibrated, tiny_checkpoint)
    uncached, cached = plain("Euler", 6), preset("high", 6)
    keys = {
        store.key(uncached, request),
        store.key(uncached, replace(request, seeds=(99,))),
        store.key(plain("UniPC", 6), request),
        store.key(plain("Euler", 7), request),
        store.key(cached, request),
        other.key(cached, request),
        store.key(cached, request, "another reference"),
    }
    assert len(keys) == 7
    assert other.key(uncached, request) == store.key(uncached, request)


def test_a_row_holds_the_spread_and_the_worst() -> None:
    settings = preset("low", 30)
    summary = summarize(settings, [cell(psnr) for psnr in (30.0, 34.0, 36.0, 38.0, 50.0)], 30)
    assert (summary.psnr_min, summary.psnr_low, summary.psnr, summary.psnr_high) == (30, 34, 36, 38)
    assert (summary.evaluations, summary.rows, summary.saving) == (8, 16, 30 / 8)


def test_the_bar_is_the_best_solver_with_as_many_evaluations() -> None:
    solvers = [row("Euler", 6, 20.0), row("Euler", 10, 30.0), row("UniPC", 8, 24.0)]
    solvers.append(row("LMS", 20, 99.0))
    middle = beside_solvers(summarize(preset("high", 20), [cell(33.0, 8)], 30), solvers)
    assert (middle.solver, middle.solver_psnr) == ("Euler", 25.0)
    beyond = beside_solvers(summarize(preset("high", 20), [cell(33.0, 40)], 30), solvers)
    assert beyond.solver is None


def test_the_full_sweep_measures_every_policy_and_scheduler_once() -> None:
    settings = list(list_settings(30, Sweep()))
    assert len({(s.policy, s.threshold, s.scheduler, s.num_steps) for s in settings}) == len(
        settings
    )
    solvers = [setting for setting in settings if setting.is_plain_solver]
    assert settings[: len(solvers)] == solvers  # before those that are compared with them
    assert all(s.plan == NO_REUSE and not s.is_grid_fitted for s in solvers)
    fb = [setting.threshold for setting in settings if setting.policy == "fbCache"]
    assert fb == [0.25, 0.0]  # the API's values: lower reuses more
    presets = [setting for setting in settings if setting.policy.startswith("preset")]
    assert all(setting.is_grid_fitted and setting.plan.is_on for setting in presets)


def test_rows_are_written_as_csv_and_json_and_plotted(tmp_path: Path) -> None:
    rows = [row("Euler", 6, 20.0), row("Euler", 10, 30.0)]
    rows.append(beside_solvers(summarize(preset("high", 20), [cell(33.0)], 30), rows))
    write_rows(rows, tmp_path / "q.csv", tmp_path / "q.json")
    written = json.loads((tmp_path / "q.json").read_text())
    assert [line["policy"] for line in written] == [row.policy for row in rows]
    with (tmp_path / "q.csv").open() as file:
        assert [int(line["steps"]) for line in csv.DictReader(file)] == [row.steps for row in rows]
    plot_quality_chart(tmp_path / "a.png", rows, 6)
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
