"""Layers over several devices of one process. Two real devices are for tests/gpu."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.kv_cache import prefill
from model.loading.build import load_model
from model.loading.device_map import layer_sizes, map_layers, spread_layers
from model.loading.options import LoadOptions
from pipeline.generate import generate
from pipeline.load import Pipeline, load_pipeline
from pipeline.request import ImageDone, ImageRequest
from pipeline.settings import PipelineSettings
from server.settings import SettingsError, load_settings
from tests.conftest import FLOAT32


def fullest(sizes: list[int], extra: int, places: list[int], count: int) -> int:
    held = [extra] + [0] * (count - 1)
    for size, place in zip(sizes, places, strict=True):
        held[place] += size
    return max(held)


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=8),
    extra=st.integers(0, 100),
    count=st.integers(1, 4),
)
def test_no_other_cut_leaves_the_fullest_device_emptier(
    sizes: list[int], extra: int, count: int
) -> None:
    places = spread_layers(sizes, extra, count)
    assert places == sorted(places)
    assert max(places) < count
    cuts = [cut for n in range(count) for cut in combinations(range(len(sizes) + 1), n)]
    others = [[sum(layer >= c for c in cut) for layer in range(len(sizes))] for cut in cuts]
    best = min(fullest(sizes, extra, other, count) for other in others)
    assert fullest(sizes, extra, places, count) == best


def test_sizes_are_those_of_the_loaded_parameters(tiny_checkpoint: Path) -> None:
    transformer = load_model(tiny_checkpoint, FLOAT32)
    sizes, extra = layer_sizes(transformer, FLOAT32)
    assert sizes == [sum(p.nbytes for p in x.parameters()) for x in transformer.layers]
    assert sum(sizes) + extra == sum(p.nbytes for p in transformer.parameters())


def test_every_layer_gets_a_device_and_the_first_one_holds_the_rest(tiny_checkpoint: Path) -> None:
    transformer = load_model(tiny_checkpoint, FLOAT32)
    sizes, _ = layer_sizes(transformer, FLOAT32)
    options = replace(FLOAT32, layer_devices=("cuda:0", "cuda:1"))
    assert map_layers(transformer, options) == ["cuda:1"] * len(sizes)  # the VAE outweighs them


def test_layers_that_stay_in_one_place_generate_the_same_image(
    tiny_checkpoint: Path, tiny_pipeline: Pipeline, image_request: ImageRequest
) -> None:
    settings = PipelineSettings(checkpoint=str(tiny_checkpoint), layer_devices=("cpu", "cpu"))
    images = [
        [
            event.pixels_yx3.tobytes()
            for event in generate(pipeline, image_request)
            if isinstance(event, ImageDone)
        ]
        for pipeline in (tiny_pipeline, load_pipeline(settings))
    ]
    assert images[0] == images[1]


def test_a_layer_on_another_device_gets_its_input_there(tiny_checkpoint: Path) -> None:
    """On the meta device nothing can come back, and the error says from where."""
    options = LoadOptions(dtype=torch.bfloat16, layer_devices=("cpu", "meta"))
    transformer = load_model(tiny_checkpoint, options)
    assert [layer.device.type for layer in transformer.layers] == ["meta"] * len(transformer.layers)
    with torch.inference_mode(), pytest.raises(NotImplementedError, match="meta tensor"):
        prefill(transformer, [1, 2, 3])


@pytest.mark.parametrize(
    "fields",
    [
        {"layer_devices": ("cuda:0", "cuda:1"), "tensor_parallel_size": 2},
        {"layer_devices": ("cuda:0", "cuda:1"), "device_memory_gb": 20.0},
        {"layer_devices": ("cuda:0", "cuda:1"), "device": "cuda:1"},
    ],
)
def test_ways_that_exclude_each_other_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=r"layer_devices"):
        load_settings(None, **{f"worker__{name}": value for name, value in fields.items()})
