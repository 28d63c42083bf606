"""Every way to generate runs through the CUDA code path: no mixed devices, no early reads.

The pixels are those of the CPU, up to the order of sums: the experts' grouped products are another
code path there.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.plan import CachePlan, ForecastPlan
from model.config_file import load_config
from model.loading.expert_offloader import NUM_STAGING_BUFFERS
from model.loading.options import LoadOptions
from model.mesh import SINGLE
from model.planning.meta_step import build_meta_model
from model.quantization.scheme import SCHEMES
from pipeline.generate import generate
from pipeline.load import Pipeline, load_pipeline, plan_step_memory
from pipeline.request import ImageDone, ImageRequest
from pipeline.settings import PipelineSettings
from tests.device.pretend_cuda import DeviceMismatchError, PretendTensor
from tests.device.pretend_functions import pretended_cuda

AMPERE, ADA, HOPPER, BLACKWELL_WORKSTATION = (8, 0), (8, 9), (9, 0), (12, 0)
NUM_CACHED_STEPS = 8
MEAN_PIXEL_ERROR = 0.5  # of 255, float32: experts are summed in another order

FLOAT32_ON_CUDA = {"device": "cuda:0", "dtype": "float32", "vae_dtype": "float32"}
REQUEST = ImageRequest(
    prompt="a red fox", width_px=256, height_px=256, num_steps=2, guidance=5.0, seeds=(7,)
)


def cached(**plan: Any) -> ImageRequest:
    whole = CachePlan(start=0, end=NUM_CACHED_STEPS, **plan)
    return replace(REQUEST, num_steps=NUM_CACHED_STEPS, cache=whole)


REQUESTS = {
    "guided": REQUEST,
    "unguided": replace(REQUEST, guidance=1.0),
    "negative": replace(REQUEST, negative_prompt="blurry"),
    "two images": replace(REQUEST, seeds=(7, 8)),
    "auto size": replace(REQUEST, width_px=None, height_px=None),
    "TeaCache and FBCache": cached(tea_distance=0.5, fb_threshold_scale=9.0),
    "TeaCache by schedule": cached(tea_distance=0.5, tea_signal="schedule"),
    "forecast": cached(forecast=ForecastPlan(order=2, interval=2)),
    "two evaluations": replace(REQUEST, scheduler="Heun"),
    "stochastic": replace(REQUEST, scheduler="Euler a"),
}


def load(checkpoint: Path, **settings: Any) -> Pipeline:
    return load_pipeline(PipelineSettings(checkpoint=str(checkpoint), **settings))


def images_of(pipeline: Pipeline, request: ImageRequest) -> list[np.ndarray[Any, Any]]:
    return [e.pixels_yx3 for e in generate(pipeline, request) if isinstance(e, ImageDone)]


@pytest.mark.parametrize("name", REQUESTS)
def test_every_request_gives_the_images_of_the_cpu(wide_checkpoint: Path, name: str) -> None:
    on_cpu = images_of(load(wide_checkpoint), REQUESTS[name])
    with pretended_cuda() as cuda:
        on_cuda = images_of(load(wide_checkpoint, **FLOAT32_ON_CUDA), REQUESTS[name])
        assert cuda.record.hazards == []
    for a, b in zip(on_cpu, on_cuda, strict=True):
        assert np.abs(a.astype(float) - b).mean() <= MEAN_PIXEL_ERROR


@pytest.mark.parametrize(
    ("capability", "settings"),
    [
        (HOPPER, {"dtype": "bfloat16"}),
        (HOPPER, {"dtype": "float16", "vae_dtype": "float16"}),
        (HOPPER, {"dtype": "bfloat16", "device": "cuda"}),
        (HOPPER, {"dtype": "bfloat16", "device": "cuda:1"}),
        (HOPPER, {"dtype": "bfloat16", "vae_dtype": "bfloat16"}),
        (HOPPER, {"dtype": "bfloat16", "quantization": "fp8"}),
        (HOPPER, {"dtype": "bfloat16", "quantization": "int8"}),
        (HOPPER, {"dtype": "bfloat16", "quantization": "int4"}),
        (AMPERE, {"dtype": "bfloat16", "quantization": "fp8"}),
        (ADA, {"dtype": "bfloat16", "quantization": "fp8"}),
        (BLACKWELL_WORKSTATION, {"dtype": "bfloat16", "quantization": "fp8"}),
        (HOPPER, {"dtype": "bfloat16", "layer_devices": ("cuda:0", "cuda:1")}),
        (HOPPER, {"layer_devices": ("cuda:0", "cuda:1", "cuda:2"), "batch_size": 2}),
        (HOPPER, {"layer_devices": ("cuda:0", "cuda:1"), "quantization": "fp8"}),
    ],
    ids=str,
)
def test_every_dtype_scheme_and_spread_runs(
    wide_checkpoint: Path, capability: tuple[int, int], settings: dict[str, Any]
) -> None:
    with pretended_cuda(capability) as cuda:
        pipeline = load(wide_checkpoint, **{"device": "cuda:0", **settings})
        for name in ("guided", "two images", "TeaCache and FBCache"):
            assert images_of(pipeline, REQUESTS[name])
        assert cuda.record.hazards == []


@pytest.mark.parametrize("spread", [{"device": "cuda:0"}, {"layer_devices": ("cuda:0", "cuda:1")}])
@pytest.mark.parametrize("rewrite", ["recaption", "think"])
def test_words_run(instruct_checkpoint: Path, rewrite: Any, spread: dict[str, Any]) -> None:
    with pretended_cuda() as cuda:
        pipeline = load(instruct_checkpoint, max_rewrite_tokens=24, **spread)
        request = replace(REQUESTS["auto size"], rewrite=rewrite, seeds=(7, 8))
        assert len(images_of(pipeline, request)) == 2
        assert cuda.record.hazards == []


def test_a_distilled_checkpoint_runs(distilled_checkpoint: Path) -> None:
    with pretended_cuda() as cuda:
        assert images_of(load(distilled_checkpoint, device="cuda:0", dtype="bfloat16"), REQUEST)
        assert cuda.record.hazards == []


@pytest.mark.parametrize(
    ("offload", "quantization"),
    [("cpu", "none"), ("cpu", "fp8"), ("cpu", "int8"), ("cpu", "int4"), ("disk", "none")],
)
def test_offloaded_experts_run(wide_checkpoint: Path, offload: Any, quantization: Any) -> None:
    settings = PipelineSettings(
        checkpoint=str(wide_checkpoint),
        device="cuda:0",
        dtype="bfloat16",
        offload=offload,
        quantization=quantization,
        max_active_jobs=1,
        device_memory_gb=1,
    )
    budget = {"device_memory_gb": budget_gb(wide_checkpoint, settings)}
    with pretended_cuda() as cuda:
        pipeline = load_pipeline(settings.model_copy(update=budget))
        for name in ("guided", "TeaCache and FBCache"):
            assert images_of(pipeline, REQUESTS[name])
        assert cuda.record.hazards == []


def budget_gb(checkpoint: Path, settings: PipelineSettings) -> float:
    """Return memory for one layer's experts of four, and for what a job needs beside them."""
    config, scheme = load_config(checkpoint), SCHEMES.get(settings.quantization)
    options = LoadOptions(quantization=settings.quantization)
    parameters = dict(build_meta_model(config, SINGLE, options, scheme).named_parameters())
    experts = sum(p.nbytes for name, p in parameters.items() if ".mlp.experts." in name)
    layer = experts // len(config.layers)
    rest = sum(p.nbytes for p in parameters.values()) - experts
    workspace = plan_step_memory(config, options, scheme, settings)
    return (workspace + rest + (1 + NUM_STAGING_BUFFERS) * layer + 1000) / 1e9


def test_the_pretending_cuda_refuses_mixed_devices() -> None:
    with pretended_cuda():
        on_device = torch.ones(3, device="cuda")
        assert isinstance(on_device, PretendTensor)
        with pytest.raises(DeviceMismatchError):
            on_device + torch.ones(3)
        with pytest.raises(DeviceMismatchError):
            torch.ones(3)[torch.tensor([0], device="cuda")]
        with pytest.raises(DeviceMismatchError):
            on_device + torch.ones(3, device="cuda:1")
