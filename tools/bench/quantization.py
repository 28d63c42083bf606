"""What rounded weights do to images: each scheme against the same checkpoint in bfloat16."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from model.quantization.scheme import SCHEMES
from pipeline.load import load_pipeline
from pipeline.request import ImageRequest
from pipeline.settings import PipelineSettings
from tools.bench.images import generate_pixels
from tools.similarity import psnr, ssim

MAX_PSNR = 99.0  # stands for equal images


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One scheme: bytes of all weights, and medians over the prompts against bfloat16 images."""

    scheme: str
    num_bytes: int
    psnr: float
    ssim: float
    least_psnr: float
    seconds: float


def run_quantization_bench(
    settings: PipelineSettings,
    make_requests: Callable[[int], Sequence[ImageRequest]],
    report: Callable[[str], None],
) -> list[Row]:
    """Generate the requests in bfloat16, float32 and every scheme, one model after the other.

    float32 against bfloat16 shows how far apart two faithful ways are. `make_requests` gets the
    side of the square size.

    Raises:
        ModelError: the checkpoint cannot be loaded, or is quantized already.
    """
    rows: list[Row] = []
    truths = None
    for scheme in ("none", "float32", *SCHEMES):
        report(f"generating with {'bfloat16' if scheme == 'none' else scheme}")
        dtype = "float32" if scheme == "float32" else "bfloat16"
        held = settings.model_copy(
            update={"dtype": dtype, "quantization": scheme if scheme in SCHEMES else "none"}
        )
        pipeline = load_pipeline(held)
        requests = make_requests(pipeline.transformer.config.image_base_size)
        generated = [generate_pixels(pipeline, request) for request in requests]
        images = [own.pixels_yx3 for own in generated]
        if truths is None:
            truths = images
        pairs = list(zip(images, truths, strict=True))
        ratios = [min(MAX_PSNR, psnr(ours, truth)) for ours, truth in pairs]
        rows.append(
            Row(
                scheme="bfloat16" if scheme == "none" else scheme,
                num_bytes=sum(p.nbytes for p in pipeline.transformer.parameters()),
                psnr=statistics.median(ratios),
                ssim=statistics.median(ssim(ours, truth) for ours, truth in pairs),
                least_psnr=min(ratios),
                seconds=statistics.median(own.seconds for own in generated),
            )
        )
    return rows


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows as JSON."""
    path.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
