import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from cache.plan import NO_REUSE
from cli.bench.quality import write_rows
from pipeline.load import Pipeline
from pipeline.request import ImageRequest
from tools.bench.quality import Row, run_quality_bench
from tools.bench.quality_charts import plot_quality_chart, plot_scheduler_chart
from tools.bench.quality_settings import Sweep, list_settings
from tools.progress import Report

SWEEP = Sweep(truth_steps=8, euler_steps=(4, 5), fb_threshold_scales=(), schedulers=())


@pytest.fixture
def small(image_request: ImageRequest) -> list[ImageRequest]:
    return [replace(image_request, guidance=1.0)]


def test_a_row_follows_each_setting_and_the_base_is_its_own_image(
    tiny_pipeline: Pipeline, small: list[ImageRequest]
) -> None:
    reported: list[tuple[str, int, int]] = []
    rows = list(run_quality_bench(tiny_pipeline, small, 6, SWEEP, lambda *r: reported.append(r)))
    settings = list(list_settings(6, SWEEP))
    assert [row.policy for row in rows] == [setting.policy for setting in settings]
    assert [row.steps for row in rows[:3]] == [4, 5, 6]
    assert {"teaCache", "naive", "forecast order 1"} <= {row.policy for row in rows}
    assert rows[2].psnr == 99
    assert rows[0].euler_psnr is None
    # The base's image is generated once, although it is both a setting and what all compare with.
    assert reported[-1][0] == "generating"
    assert reported[-1][1] == reported[-1][2] == len(settings) + 1


def stop_at(image: int) -> Report:
    """Return a progress callback that interrupts the run after an image."""

    def report(stage: str, done: int, total: int) -> None:
        if done == image + 1:
            raise KeyboardInterrupt

    return report


def test_what_stops_a_run_leaves_the_rows_before_it(
    tiny_pipeline: Pipeline, small: list[ImageRequest], tmp_path: Path
) -> None:
    def measure_until_stopped() -> None:
        kept: list[Row] = []
        for row in run_quality_bench(tiny_pipeline, small, 6, SWEEP, stop_at(4)):
            kept.append(row)
            write_rows(kept, tmp_path / "q.csv", tmp_path / "q.json")

    with pytest.raises(KeyboardInterrupt):
        measure_until_stopped()
    written = json.loads((tmp_path / "q.json").read_text())
    assert [(row["policy"], row["steps"]) for row in written] == [("none", n) for n in (4, 5, 6)]
    with (tmp_path / "q.csv").open() as file:
        assert [int(row["steps"]) for row in csv.DictReader(file)] == [4, 5, 6]


def test_the_full_sweep_measures_every_policy_and_scheduler() -> None:
    settings = list(list_settings(30, Sweep()))
    assert len(settings) == 9 + 4 + 3 + 3 + 3 + 2 + 6 * 3
    assert len({(s.policy, s.threshold, s.scheduler, s.num_steps) for s in settings}) == 42
    plain = [setting for setting in settings if setting.policy == "none"]
    assert all(setting.plan == NO_REUSE for setting in plain)
    fb = [setting.threshold for setting in settings if setting.policy == "fbCache"]
    assert fb == [0.25, 0.55, 0.0]  # the API's values: lower reuses more


def test_charts_are_written(
    tiny_pipeline: Pipeline, small: list[ImageRequest], tmp_path: Path
) -> None:
    sweep = replace(SWEEP, tea_distances=(0.5,), forecast_distances=(), forecasts=())
    rows = list(run_quality_bench(tiny_pipeline, small, 6, replace(sweep, naive_reuse=())))
    plot_quality_chart(tmp_path / "a.png", rows, 6)
    plot_scheduler_chart(tmp_path / "b.png", rows, 8)
    assert all((tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in ("a.png", "b.png"))
