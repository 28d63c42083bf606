"""Calibration of the sigma schedules, and requests that use them."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cache.calibration import UNCALIBRATED, FittedGrid, save_calibration
from model.loading.fingerprint import fingerprint
from pipeline.generate import generate
from pipeline.load import Pipeline, load_pipeline
from pipeline.request import ImageDone, ImageRequest
from pipeline.settings import PipelineSettings
from server.runware.errors import CommandError
from tools.calibrate_grids import GridSweep, fit_checkpoint_grids, recalibrate_grids
from tools.progress import ignore

SMALL = GridSweep(ranges=((1.0, 3.0, 2.0),), counts=(4, 5), num_prompts=1, recorded_steps=8)
GRID = FittedGrid(guidance=(3.0, 6.0), sigmas=(1.0, 0.95, 0.9, 0.5, 0.0))


def done(pipeline: Pipeline, request: ImageRequest) -> ImageDone:
    return next(event for event in generate(pipeline, request) if isinstance(event, ImageDone))


def test_each_range_gets_a_grid_of_each_number_of_steps(tiny_pipeline: Pipeline) -> None:
    reported: list[tuple[str, int, int]] = []
    grids = fit_checkpoint_grids(
        tiny_pipeline, ["a fox", "a tree"], lambda *progress: reported.append(progress), SMALL
    )
    assert [(grid.guidance, len(grid.sigmas)) for grid in grids] == [
        ((1.0, 3.0), n) for n in (5, 6)
    ]
    assert reported == [("recording trajectories", n, 1) for n in (0, 1)]
    assert fit_checkpoint_grids(tiny_pipeline, ["a fox"], ignore, SMALL) == grids


def test_only_a_request_that_wants_the_fitted_grid_gets_it(
    tiny_pipeline: Pipeline, image_request: ImageRequest
) -> None:
    pipeline = replace(tiny_pipeline, calibration=replace(UNCALIBRATED, grids=(GRID,)))
    plain = replace(image_request, num_steps=4, guidance=5.0)
    fitted = replace(plain, is_grid_fitted=True)
    assert done(pipeline, plain).diagnostics.sigma_schedule == "shifted"
    assert done(pipeline, fitted).diagnostics.resolved_scheduler == "Euler fitted"
    other_range = replace(fitted, guidance=7.0)
    assert done(pipeline, other_range).diagnostics.sigma_schedule == "shifted"
    without = done(tiny_pipeline, fitted).pixels_yx3
    assert without.tobytes() == done(tiny_pipeline, plain).pixels_yx3.tobytes()


def test_a_checkpoint_without_a_calibration_is_sent_to_the_whole_one(tiny_checkpoint: Path) -> None:
    with pytest.raises(CommandError, match="without --grids-only"):
        recalibrate_grids(PipelineSettings(checkpoint=str(tiny_checkpoint)), ["a red fox"])


def test_nothing_but_the_grids_is_fitted_again(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    before = replace(UNCALIBRATED, fingerprint=fingerprint(folder), tea_scale=0.4)
    save_calibration(folder, before)
    settings = PipelineSettings(checkpoint=str(folder))
    recalibrate_grids(settings, ["a red fox"], sweep=SMALL)
    loaded = load_pipeline(settings).calibration
    assert replace(loaded, grids=()) == before
    assert [len(grid.sigmas) for grid in loaded.grids] == [5, 6]
