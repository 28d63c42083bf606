"""The host never waits for the device inside a denoising step, but for a step cache's decision.

A wait drains the device's queue: it idles until the host has queued the next kernels again.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cache.plan import CachePlan
from pipeline.generate import generate
from pipeline.load import Pipeline
from pipeline.request import ImageRequest, StepDone
from tests.device.pretend_cuda import PretendCuda
from tests.device.pretend_functions import pretended_cuda
from tests.device.test_modes import REQUEST, REQUESTS, load

SPREADS: dict[str, dict[str, Any]] = {
    "one device": {"device": "cuda:0"},
    "float8": {"device": "cuda:0", "quantization": "fp8"},
    "int4": {"device": "cuda:0", "quantization": "int4"},
    "layers": {"layer_devices": ("cuda:0", "cuda:1")},
    "batch": {"device": "cuda:0", "batch_size": 2},
}
WITHOUT_CACHE = [
    name for name, request in REQUESTS.items() if request.cache == REQUESTS["guided"].cache
]
# A spread changes where tensors lie, not what a request does: two requests are enough for each.
CASES = [(name, "one device") for name in WITHOUT_CACHE]
CASES += [(name, spread) for spread in list(SPREADS)[1:] for name in ("guided", "two images")]


def waits_of_later_steps(cuda: PretendCuda, pipeline: Pipeline, request: ImageRequest) -> list[str]:
    """Return what waited between the end of the first step and the end of the last."""
    waits: list[str] = []
    is_first = True
    for event in generate(pipeline, request):
        if isinstance(event, StepDone) and event.image == 0:
            if not is_first:
                waits += map(str, cuda.record.syncs)
            is_first = event.step == event.num_steps
            cuda.record.clear()
    return waits


@pytest.mark.parametrize(("name", "spread"), CASES)
def test_a_step_without_a_cache_never_waits(wide_checkpoint: Path, name: str, spread: str) -> None:
    with pretended_cuda() as cuda:
        pipeline = load(wide_checkpoint, dtype="bfloat16", **SPREADS[spread])
        request = replace(REQUESTS[name], num_steps=3)
        assert waits_of_later_steps(cuda, pipeline, request) == []


@pytest.mark.parametrize(
    "plan",
    [
        {"tea_distance": 0.5},
        {"tea_distance": 0.5, "tea_signal": "schedule"},
        {"fb_threshold_scale": 1.0},
    ],
    ids=str,
)
def test_a_step_cache_waits_once_a_step_for_its_decision(
    wide_checkpoint: Path, plan: dict[str, Any]
) -> None:
    steps = 5
    request = replace(REQUEST, num_steps=steps, cache=CachePlan(start=0, end=steps, **plan))
    with pretended_cuda() as cuda:
        pipeline = load(wide_checkpoint, device="cuda:0", dtype="bfloat16")
        waits = waits_of_later_steps(cuda, pipeline, request)
        assert len(waits) <= steps - 1, waits
