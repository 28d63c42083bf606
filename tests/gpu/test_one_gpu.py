"""One GPU does what the CPU does: recorded truth, each fast path, offload within its memory."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model import fused
from model.kv_cache import prefill
from model.loading.build import load_model
from model.loading.expert_offloader import staging_bytes
from model.loading.options import LoadOptions
from model.moe import Experts
from model.quantization import fp8_cuda
from model.quantization.scheme import SCHEMES, dequantize, quantize
from model.transformer import HunyuanImage
from pipeline.generate import generate
from pipeline.load import load_pipeline
from pipeline.request import ImageDone, ImageRequest
from pipeline.settings import PipelineSettings
from tests.gpu.conftest import CUDA_BFLOAT16, ROUGHLY
from tests.unit.model.test_fused import arguments as fused_arguments
from tests.unit.model.test_fused import as_tuple

IDS = list(range(60))


def hidden(transformer: HunyuanImage, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return prefill(transformer, ids).hidden_1SD.float().cpu()


def experts_of(transformer: HunyuanImage) -> list[Experts]:
    return [module for module in transformer.modules() if isinstance(module, Experts)]


def test_layers_agree_with_the_cpu(wide_checkpoint: Path, on_cpu: HunyuanImage) -> None:
    ours = hidden(load_model(wide_checkpoint, CUDA_BFLOAT16), IDS)
    torch.testing.assert_close(ours, hidden(on_cpu, IDS), **ROUGHLY)


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_rounded_layers_agree_with_the_cpu(wide_checkpoint: Path, name: str) -> None:
    ours = load_model(wide_checkpoint, replace(CUDA_BFLOAT16, quantization=name))
    theirs = load_model(wide_checkpoint, LoadOptions(dtype=torch.bfloat16, quantization=name))
    tolerance = {"atol": 0.2, "rtol": 0.1} if name == "fp8" else ROUGHLY  # inputs are rounded too
    torch.testing.assert_close(hidden(ours, IDS), hidden(theirs, IDS), **tolerance)


def test_a_float8_product_is_near_the_restored_one() -> None:
    torch.manual_seed(0)
    x = torch.randn(33, 256, device="cuda", dtype=torch.bfloat16)
    packed, scale = quantize(torch.randn(512, 256, device="cuda") * 0.05, SCHEMES["fp8"])
    if not fp8_cuda.is_usable(x, packed):
        pytest.skip("this GPU has no float8 units; weights are restored instead")
    ours = fp8_cuda.linear(x, packed, scale).float()
    exact = x.float() @ dequantize(packed, scale, torch.float32).T
    assert (ours - exact).norm() / exact.norm() < 0.05


def test_fused_kernels_agree_with_their_eager_functions() -> None:
    """Compiled by Triton, each against the operations that it replaces, in float32."""
    torch.backends.cudnn.allow_tf32 = False
    for name, given in fused_arguments(torch.float32).items():
        on_device = [a.cuda() if isinstance(a, torch.Tensor) else a for a in given]
        kernel = getattr(fused, name)
        results = as_tuple(kernel.compiled()(*on_device)), as_tuple(kernel.eager(*on_device))
        for ours, reference in zip(*results, strict=True):
            torch.testing.assert_close(ours.float(), reference.float(), atol=1e-5, rtol=1e-5)


def test_fetched_experts_give_the_same_numbers(wide_checkpoint: Path) -> None:
    whole = load_model(wide_checkpoint, CUDA_BFLOAT16)
    experts = staging_bytes(whole.layers[0].mlp.experts)
    budget = sum(p.nbytes for p in whole.parameters()) - experts
    for offload in ("cpu", "disk"):
        options = replace(CUDA_BFLOAT16, weights_bytes=budget, offload=offload)
        fetched = load_model(wide_checkpoint, options)
        assert fetched.expert_offload is not None
        for _ in range(5):
            assert torch.equal(hidden(fetched, IDS), hidden(whole, IDS))


def test_an_image_is_generated_within_the_memory_promised(
    wide_checkpoint: Path, image_request: ImageRequest
) -> None:
    settings = PipelineSettings(
        checkpoint=str(wide_checkpoint), device="cuda:0", dtype="bfloat16", device_memory_gb=0.06
    )
    torch.cuda.reset_peak_memory_stats()
    pipeline = load_pipeline(settings)
    list(generate(pipeline, image_request))
    assert torch.cuda.max_memory_allocated() <= settings.device_memory_gb * 1e9


def test_a_step_waits_for_the_device_at_most_once(
    wide_checkpoint: Path, image_request: ImageRequest
) -> None:
    pipeline = load_pipeline(
        PipelineSettings(checkpoint=str(wide_checkpoint), device="cuda:0", dtype="bfloat16")
    )
    counts = {}
    for num_steps in (2, 6):
        events = generate(pipeline, replace(image_request, num_steps=num_steps))
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                list(events)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        counts[num_steps] = sum("synchroniz" in str(w.message) for w in caught)
    assert (counts[6] - counts[2]) / 4 <= 1


def test_the_images_of_a_gpu_and_a_cpu_look_the_same(
    wide_checkpoint: Path, image_request: ImageRequest
) -> None:
    images = []
    for device in ("cpu", "cuda:0"):
        pipeline = load_pipeline(PipelineSettings(checkpoint=str(wide_checkpoint), device=device))
        (done,) = (e for e in generate(pipeline, image_request) if isinstance(e, ImageDone))
        images.append(done.pixels_yx3.astype(float))
    assert np.abs(images[0] - images[1]).mean() < 2  # of 255, float32 on both
