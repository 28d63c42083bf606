"""Image quality of quantized weights: each scheme against the same checkpoint in bfloat16."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from model.quantization.scheme import SCHEMES
from pipeline.load import load_pipeline
from pipeline.request import ImageRequest
from pipeline.settings import PipelineSettings
from tools.bench.images import generate_pixels
from tools.progress import Report, ignore
from tools.similarity import MAX_PSNR, psnr, ssim

BASELINES = ("bfloat16", "float32")


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
    report: Report = ignore,
) -> Iterator[Row]:
    """Generate the requests in bfloat16, float32 and every scheme, one model after the other.

    float32 against bfloat16 shows how far apart two faithful ways are. `make_requests` gets the
    side of the square size. A row follows each model.

    Raises:
        ModelError: the checkpoint cannot be loaded, or is quantized already.
    """
    truths = None
    for name in (*BASELINES, *SCHEMES):
        held = settings.model_copy(
            update={
                "dtype": "float32" if name == "float32" else "bfloat16",
                "quantization": name if name in SCHEMES else "none",
            }
        )
        pipeline = load_pipeline(held)
        requests = make_requests(pipeline.transformer.config.image_base_size)
        generated = []
        for index, request in enumerate(requests):
            report(f"generating with {name}", index, len(requests))
            generated.append(generate_pixels(pipeline, request))
        report(f"generating with {name}", len(requests), len(requests))
        images = [image.pixels_yx3 for image in generated]
        truths = truths or images
        pairs = list(zip(images, truths, strict=True))
        ratios = [min(MAX_PSNR, psnr(ours, truth)) for ours, truth in pairs]
        yield Row(
            scheme=name,
            num_bytes=sum(p.nbytes for p in pipeline.transformer.parameters()),
            psnr=statistics.median(ratios),
            ssim=statistics.median(ssim(ours, truth) for ours, truth in pairs),
            least_psnr=min(ratios),
            seconds=statistics.median(image.seconds for image in generated),
        )
