"""`hyimage bench quantization`: images of quantized weights against those of bfloat16 ones."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from cli.console import progress_bar, stdout, write_json
from cli.options import (
    CheckpointOption,
    ConfigOption,
    GuidanceOption,
    JsonOption,
    NumPromptsOption,
    StepsOption,
    read_model_settings,
    reported_errors,
)

if TYPE_CHECKING:
    from pipeline.request import ImageRequest


def bench_quantization(
    num_prompts: NumPromptsOption = 20,
    guidance: GuidanceOption = 7.0,
    steps: StepsOption = 30,
    json_file: JsonOption = None,
    config: ConfigOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Compare images of fp8, int8 and int4 weights with those of bfloat16 ones: PSNR and SSIM.

    Example: hyimage bench quantization --num-prompts 4 --steps 20 --json rows.json
    """
    with reported_errors():
        settings = read_model_settings(config, checkpoint)
        from tools.bench.images import square_request
        from tools.bench.prompts import read_prompts
        from tools.bench.quantization import run_quantization_bench

        texts = read_prompts(None, num_prompts)

        def requests(side_px: int) -> list[ImageRequest]:
            return [
                square_request(side_px, text, seed, guidance, steps)
                for seed, text in enumerate(texts)
            ]

        with progress_bar() as report:
            rows = list(run_quantization_bench(settings.worker, requests, report))
        stdout.print("weights    GB       PSNR    worst   SSIM    s/image")
        for row in rows:
            stdout.print(
                f"{row.scheme:9s} {row.num_bytes / 1e9:7.3f} {row.psnr:7.1f} "
                f"{row.least_psnr:7.1f} {row.ssim:7.3f} {row.seconds:7.2f}"
            )
        write_json(json_file, [asdict(row) for row in rows])
