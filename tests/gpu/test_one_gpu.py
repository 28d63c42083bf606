"""One GPU does what the CPU does: layers, kernels, fetched experts, images, memory, no waits."""

import contextlib
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.grouped import has_triton, is_fast
from model.loading.build import load_model
from model.loading.expert_offloader import staging_bytes
from model.loading.options import LoadOptions
from model.moe import Experts
from model.quantization.scheme import SCHEMES
from model.transformer import HunyuanImage
from pipeline.generate import generate
from pipeline.load import Pipeline, load_pipeline
from pipeline.request import ImageDone, ImageRequest, StepDone
from pipeline.settings import PipelineSettings
from tests.device.test_modes import budget_gb
from tests.gpu.agreement import (
    BFLOAT16_COSINE,
    FLOAT8_COSINE,
    FLOAT32_ERROR,
    hidden,
    largest_error,
    smallest_cosine,
)
from tests.gpu.rehearsal import IS_REHEARSAL
from tools.first_contact.kernels import CHECKS

ON_CPU = LoadOptions(dtype=torch.float32)
CUDA_FLOAT32 = replace(ON_CPU, device="cuda:0")
CUDA_BFLOAT16 = replace(CUDA_FLOAT32, dtype=torch.bfloat16)

# cuBLAS and cuDNN take workspaces out of torch's allocator beside the plan: 32 MiB a handle on
# Hopper, and what the convolutions' algorithms want.
ROOM_BYTES = 0 if IS_REHEARSAL else 256e6


def test_float32_layers_agree_with_the_cpu(wide_checkpoint: Path) -> None:
    ours = hidden(load_model(wide_checkpoint, CUDA_FLOAT32))
    assert largest_error(ours, hidden(load_model(wide_checkpoint, ON_CPU))) <= FLOAT32_ERROR


def test_bfloat16_layers_are_near_float32_on_the_cpu(unrouted_checkpoint: Path) -> None:
    ours = hidden(load_model(unrouted_checkpoint, CUDA_BFLOAT16))
    truth = hidden(load_model(unrouted_checkpoint, ON_CPU))
    assert smallest_cosine(ours, truth) >= BFLOAT16_COSINE


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_quantized_layers_are_near_float32_on_the_cpu(unrouted_checkpoint: Path, name: str) -> None:
    """The CPU multiplies by the same rounded weights."""
    ours = hidden(load_model(unrouted_checkpoint, replace(CUDA_BFLOAT16, quantization=name)))
    truth = hidden(load_model(unrouted_checkpoint, replace(ON_CPU, quantization=name)))
    limit = FLOAT8_COSINE if name == "fp8" else BFLOAT16_COSINE
    assert smallest_cosine(ours, truth) >= limit


@pytest.mark.parametrize("name", CHECKS)
def test_a_kernel_agrees_with_float32_at_a_fixed_routing(name: str) -> None:
    """The checks of `hyimage first-contact`."""
    checks = list(CHECKS[name](torch.device("cuda:0")))
    assert [check for check in checks if not check.is_ok] == []
    if all(check.error is None for check in checks):
        pytest.skip("; ".join({check.note for check in checks}))


def test_fetched_experts_give_the_same_numbers(wide_checkpoint: Path) -> None:
    whole = load_model(wide_checkpoint, CUDA_BFLOAT16)
    experts = staging_bytes(experts_of(whole)[0])
    budget = sum(p.nbytes for p in whole.parameters()) - experts
    for offload in ("cpu", "disk"):
        options = replace(CUDA_BFLOAT16, weights_bytes=budget, offload=offload)
        fetched = load_model(wide_checkpoint, options)
        assert fetched.expert_offload is not None
        for _ in range(5):
            assert torch.equal(hidden(fetched), hidden(whole))


def experts_of(transformer: HunyuanImage) -> list[Experts]:
    return [module for module in transformer.modules() if isinstance(module, Experts)]


def test_an_image_is_generated_within_the_memory_promised(
    heavy_checkpoint: Path, image_request: ImageRequest
) -> None:
    settings = PipelineSettings(
        checkpoint=str(heavy_checkpoint),
        device="cuda:0",
        dtype="bfloat16",
        max_active_jobs=1,
        device_memory_gb=1,
    )
    promised = budget_gb(heavy_checkpoint, settings)
    torch.cuda.reset_peak_memory_stats()
    pipeline = load_pipeline(settings.model_copy(update={"device_memory_gb": promised}))
    whole = sum(parameter.nbytes for parameter in pipeline.transformer.parameters())
    limit = promised * 1e9 + ROOM_BYTES
    assert whole > limit, "nothing would be offloaded: this test could not fail"
    assert [event for event in generate(pipeline, image_request) if isinstance(event, ImageDone)]
    assert torch.cuda.max_memory_allocated() <= limit


def waits_of_later_steps(pipeline: Pipeline, request: ImageRequest) -> list[str]:
    """Return torch's warnings of waits between the end of the first step and that of the last."""
    waits: list[str] = []
    with contextlib.ExitStack() as stack:
        caught = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")  # pytest would make an error of torch's warning of the mode
        torch.cuda.set_sync_debug_mode("warn")
        stack.callback(torch.cuda.set_sync_debug_mode, "default")
        for event in generate(pipeline, request):
            if isinstance(event, StepDone):
                messages = [str(w.message) for w in caught] if event.step > 1 else []
                waits += [message for message in messages if "synchroniz" in message]
                caught.clear()
    return waits


def test_a_step_never_waits_for_the_device(
    wide_checkpoint: Path, image_request: ImageRequest
) -> None:
    settings = PipelineSettings(checkpoint=str(wide_checkpoint), device="cuda:0", dtype="bfloat16")
    pipeline = load_pipeline(settings)
    capability = torch.cuda.get_device_capability(0)
    if not (is_fast(torch.bfloat16, capability) or has_triton(torch.device("cuda:0"))):
        pytest.skip(f"no grouped products for {capability}: torch waits in every layer")
    assert waits_of_later_steps(pipeline, replace(image_request, num_steps=4)) == []


def test_the_images_of_a_gpu_and_a_cpu_look_the_same(
    wide_checkpoint: Path, image_request: ImageRequest
) -> None:
    images = []
    for device in ("cpu", "cuda:0"):
        settings = PipelineSettings(
            checkpoint=str(wide_checkpoint), device=device, dtype="float32", vae_dtype="float32"
        )
        events = generate(load_pipeline(settings), image_request)
        (done,) = (event for event in events if isinstance(event, ImageDone))
        images.append(done.pixels_yx3.astype(float))
    assert np.abs(images[0] - images[1]).mean() < 0.5  # of 255
