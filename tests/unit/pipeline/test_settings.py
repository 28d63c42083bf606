"""Pipeline settings: what `auto` stands for, and what is refused with advice."""

from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.device import slow_paths
from pipeline.settings import PipelineSettings

AMPERE, ADA, HOPPER, WORKSTATION = (8, 0), (8, 9), (9, 0), (12, 0)


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", "float32"), ("cuda", "bfloat16"), ("cuda:1", "bfloat16")]
)
def test_auto_is_the_dtype_that_a_device_is_fast_in(device: str, dtype: str) -> None:
    settings = PipelineSettings(device=device)
    assert (settings.weights_dtype, settings.decoder_dtype) == (dtype, dtype)
    assert PipelineSettings(device=device, dtype="float16").weights_dtype == "float16"


def test_layers_on_cuda_devices_are_held_as_on_one() -> None:
    spread = PipelineSettings(layer_devices=("cuda:0", "cuda:1"))
    assert (spread.is_cuda, spread.weights_dtype) == (True, "bfloat16")


@pytest.mark.parametrize(
    ("refused", "advice"),
    [
        ({"layer_devices": ("cuda:0", "cpu")}, "device_memory_gb"),
        ({"device": "cuda:0", "tensor_parallel_size": 2}, 'device = "cuda"'),
        ({"device": "cuda:1", "cfg_parallel_size": 2}, "CUDA_VISIBLE_DEVICES"),
        ({"compile_kernels": "on"}, "auto"),
        ({"layer_devices": ("cpu", "cpu"), "tensor_parallel_size": 2}, "choose one way"),
    ],
    ids=str,
)
def test_what_would_compute_garbage_or_share_one_card_is_refused_with_advice(
    refused: dict[str, Any], advice: str
) -> None:
    with pytest.raises(ValidationError, match=advice):
        PipelineSettings(**refused)


@pytest.mark.parametrize(
    ("capability", "settings", "words"),
    [
        (HOPPER, {}, []),
        (HOPPER, {"dtype": "float32"}, ["bfloat16 does neither"]),
        (HOPPER, {"dtype": "float16"}, ["bfloat16 does neither"]),
        (AMPERE, {}, ["8.0"]),
        (WORKSTATION, {}, ["12.0"]),
        (AMPERE, {"quantization": "fp8"}, ["8.0", "int8 is as large"]),
        (ADA, {"quantization": "fp8"}, ["8.9"]),
    ],
    ids=str,
)
def test_each_way_off_the_fast_path_has_its_sentence(
    capability: tuple[int, int], settings: dict[str, Any], words: list[str]
) -> None:
    sentences = list(slow_paths(PipelineSettings(device="cuda", **settings), capability))
    assert len(sentences) == len(words)
    assert all(word in sentence for word, sentence in zip(words, sentences, strict=True))


def test_a_card_whose_experts_are_multiplied_in_triton_does_not_wait_for_the_device() -> None:
    settings = PipelineSettings(device="cuda")
    (slow,), (own,) = (list(slow_paths(settings, AMPERE, is_own)) for is_own in (False, True))
    assert "waits for the device" in slow
    assert "waits" not in own
    assert "Triton" in own
