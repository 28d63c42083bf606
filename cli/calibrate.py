"""`hyimage calibrate`: step_cache.json and latent_preview.json of a checkpoint, measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from cli.console import progress_bar, stdout
from cli.options import (
    ART_FOLDER,
    ConfigOption,
    RequiredCheckpoint,
    read_model_settings,
    reported_errors,
)

if TYPE_CHECKING:
    from cache.calibration import Calibration
    from tools.calibrate import CalibrationResult

NUM_SHOWN_CHANGES = 10
SHOWN_GRIDS = (8, 12)  # steps


def calibrate(
    checkpoint: RequiredCheckpoint,
    num_prompts: Annotated[
        int, typer.Option("--num-prompts", help="Images to record; 50 or more.", min=3)
    ] = 54,
    prompts: Annotated[Path | None, typer.Option(help="Your own prompts, one a line.")] = None,
    guidance_only: Annotated[
        bool,
        typer.Option("--guidance-only", help="Measure only the interval of the guidance again."),
    ] = False,
    grids_only: Annotated[
        bool, typer.Option("--grids-only", help="Fit only the sigma schedules again.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Measure how steps change, for the step caches, how latents look, and where to guide.

    Generates the prompts without reuse, fits the output's change to TeaCache's signal, then
    generates eight of them with rising thresholds, and with six bounds of the guidance, and fits
    sigma schedules of 4 to 30 steps. Writes step_cache.json with a chart, and latent_preview.json,
    into the checkpoint's folder. Takes as long as some 250 images of 30 steps; 380 for the tiny
    checkpoint, whose captions are scored.

    Example: hyimage calibrate --checkpoint checkpoints/tiny
    """
    with reported_errors():
        settings = read_model_settings(config, checkpoint)
        from tools.bench.prompts import read_prompts
        from tools.calibrate import calibrate_checkpoint
        from tools.calibrate_grids import recalibrate_grids
        from tools.calibrate_guidance import recalibrate_guidance

        texts, art = read_prompts(prompts, num_prompts), ART_FOLDER.expanduser()
        with progress_bar() as report:
            if grids_only:
                calibration = recalibrate_grids(settings.worker, texts, report)
            elif guidance_only:
                calibration = recalibrate_guidance(settings.worker, texts, art, report)
            else:
                result = calibrate_checkpoint(settings.worker, texts, art, report)
                calibration = result.calibration
        if not guidance_only and not grids_only:
            _print(result)
        if not grids_only:
            _print_interval(calibration)
        if not guidance_only:
            _print_grids(calibration)


def _print_grids(calibration: Calibration) -> None:
    table = Table("guidance", "steps", "fitted sigmas")
    for grid in calibration.grids:
        if len(grid.sigmas) - 1 in SHOWN_GRIDS:
            low, high = grid.guidance
            sigmas = " ".join(f"{sigma:.3f}" for sigma in grid.sigmas)
            table.add_row(f"{low:g} to {high:g}", str(len(grid.sigmas) - 1), sigmas)
    stdout.print(table)


def _print_interval(calibration: Calibration) -> None:
    assert calibration.guidance is not None, "both ways of calibrating measure it"
    interval = calibration.guidance
    table = Table("guided up to", interval.measure, "rows")
    for row in interval.candidates:
        table.add_row(f"{row['high']:g}", f"{row['score']:.3f}", f"{row['rows']:.1%}")
    stdout.print(table)
    stdout.print(
        f"guidance: the preset `interval` is [{interval.low:g}, {interval.high:g}], from "
        f"{interval.n} images for each bound at guidance {interval.scale:g}, {interval.steps} steps"
    )


def _print(result: CalibrationResult) -> None:
    from cache.calibration import DEFAULT_DISTANCE

    calibration = result.calibration
    table = Table("policy", "threshold", "saving", "PSNR, dB")
    for row in result.swept:
        table.add_row(row.policy, f"{row.threshold:.4f}", f"{row.saving:.2f}x", f"{row.psnr:.1f}")
    stdout.print(table)
    if calibration.poly:
        stdout.print(
            f"polynomial of degree {len(calibration.poly) - 1}, R2 {calibration.r2:.2f}, "
            f"RMSE {calibration.rmse:.4f}, from {calibration.n} steps"
        )
    else:
        stdout.print(
            f"no polynomial predicts the output's change (R2 {calibration.r2:.2f}); TeaCache uses "
            "the mean change by noise level instead"
        )
    stdout.print(
        f"teaCacheDistance {DEFAULT_DISTANCE} = {calibration.tea_scale * DEFAULT_DISTANCE:.4f}, "
        f"default fbCacheThreshold = {calibration.fb_threshold:.4f}"
    )
    preview = result.preview
    stdout.print(
        f"previews: a linear map of {preview.n} latent cells to {preview.patch}x{preview.patch} "
        f"pixels each, R2 {preview.r2:.3f}; one takes {result.preview_share:.2%} of a step"
    )
    stdout.print(f"{result.path}, {result.chart.name} and {result.preview_path.name}")
    changes = list(result.changes.items())
    shown = changes[:: max(1, len(changes) // NUM_SHOWN_CHANGES)]
    line = ", ".join(f"{change:.3f} at {sigma:.2f}" for sigma, change in shown)
    stdout.print(f"relative change of the output by noise level: {line}")
