"""`hyimage record`: a regression recording of this implementation's own results."""

from pathlib import Path
from typing import Annotated

import typer

from cli.console import progress_bar, stdout
from cli.options import RequiredCheckpoint, read_model_settings, reported_errors


def record(
    checkpoint: RequiredCheckpoint,
    folder: Annotated[Path, typer.Argument(help="Where the recording is written.")],
) -> None:
    """Record this implementation's own results of a checkpoint, for `hyimage verify` to guard.

    Such a recording shows later that results have changed, not that they are right: only
    recordings of the official reference do that.

    Example: hyimage record --checkpoint checkpoints/tiny tests/regression
    """
    with reported_errors():
        settings = read_model_settings(None, checkpoint)
        from pipeline.load import load_pipeline
        from tools.progress import megabytes
        from tools.verify.record import record_checkpoint

        with progress_bar() as report:
            pipeline = load_pipeline(settings.worker, megabytes(report, "loading"))
            record_checkpoint(pipeline, folder)
        stdout.print(
            f"recorded into {folder}; compare: hyimage verify --checkpoint {checkpoint} {folder}"
        )
