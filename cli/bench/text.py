"""`hyimage bench text`: tokens a second of text decoding."""

from dataclasses import asdict
from typing import Annotated

import typer

from cli.console import progress_bar, stdout, write_json
from cli.options import (
    CheckpointOption,
    ConfigOption,
    JsonOption,
    read_model_settings,
    reported_errors,
)


def bench_text(
    batch: Annotated[int, typer.Option(help="Texts written together.", min=1)] = 1,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens before the text.", min=1)] = 200,
    tokens: Annotated[int, typer.Option(help="Tokens to write.", min=4)] = 64,
    json_file: JsonOption = None,
    config: ConfigOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Measure text decoding: tokens a second, share of matrix products, what reuse saves.

    Example: hyimage bench text --checkpoint checkpoints/tiny --batch 4
    """
    with reported_errors():
        settings = read_model_settings(config, checkpoint)
        from pipeline.load import load_pipeline
        from tools.bench.text import run_text_bench
        from tools.progress import megabytes

        with progress_bar() as report:
            pipeline = load_pipeline(settings.worker, megabytes(report, "loading"))
            result = run_text_bench(pipeline, batch, prompt_tokens, tokens)
        stdout.print(
            f"{result.tokens_per_s:.0f} tokens/s ({batch} together, {1000 * result.step_s:.1f} ms "
            f"a step); matrix products and attention alone {1000 * result.bare_s:.1f} ms, "
            f"{result.share_bare:.0%} of it\n"
            f"the image's prompt after the text: {1000 * result.recomputed_s:.1f} ms anew, "
            f"{1000 * result.reused_s:.1f} ms from the text's keys and values"
        )
        write_json(json_file, asdict(result))
