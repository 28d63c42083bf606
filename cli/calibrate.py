"""`hyimage calibrate`: step_cache.json and latent_preview.json of a checkpoint, measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from cli.console import progress_bar, stdout
from cli.options import ConfigOption, RequiredCheckpoint, read_model_settings, reported_errors

if TYPE_CHECKING:
    from tools.calibrate import CalibrationResult

NUM_SHOWN_CHANGES = 10


def calibrate(
    checkpoint: RequiredCheckpoint,
    num_prompts: Annotated[
        int, typer.Option("--num-prompts", help="Images to record; 50 or more.", min=3)
    ] = 54,
    prompts: Annotated[Path | None, typer.Option(help="Your own prompts, one a line.")] = None,
    config: ConfigOption = None,
) -> None:
    """Measure how steps change, for the step caches, and how latents look, for previews.

    Generates the prompts without reuse, fits the output's change to TeaCache's signal, then
    generates eight of them with rising thresholds. Writes step_cache.json with a chart, and
    latent_preview.json, into the checkpoint's folder. Takes as long as some 170 images of 30 steps.

    Example: hyimage calibrate --checkpoint checkpoints/tiny
    """
    with reported_errors():
        settings = read_model_settings(config, checkpoint)
        from tools.bench.prompts import read_prompts
        from tools.calibrate import calibrate_checkpoint

        texts = read_prompts(prompts, num_prompts)
        with progress_bar() as report:
            result = calibrate_checkpoint(settings.worker, texts, report)
        _print(result)


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
