"""Offloaded experts: the same images, within the memory promised."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import pytest
import torch
from torch import Tensor

from model.config_file import load_config
from model.errors import CheckpointError, ConfigError
from model.kv_cache import prefill
from model.loading.build import load_model
from model.loading.expert_offload import choose_offloaded, experts_of
from model.loading.expert_offloader import ExpertOffloader, staging_bytes
from model.loading.options import LoadOptions
from model.loading.quantize_folder import quantize_folder
from model.mesh import Mesh, RankGroup
from model.moe import Experts
from model.quantization.scheme import SCHEMES
from model.transformer import HunyuanImage
from pipeline.generate import generate
from pipeline.load import load_pipeline, plan_step_memory
from pipeline.request import ImageDone, ImageRequest
from pipeline.settings import PipelineSettings
from tests.conftest import FLOAT32, SMALL_CONFIG
from training.random_checkpoint import write_random_checkpoint

Offload = Literal["cpu", "disk"]
LAYERS = 5


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deep")
    write_random_checkpoint(folder, {**SMALL_CONFIG, "num_hidden_layers": LAYERS})
    return folder


def weights_bytes(folder: Path, num_resident: int) -> tuple[int, int]:
    """Return (what leaves room for so many layers' experts, what all weights take), float32."""
    whole = load_model(folder, FLOAT32)
    total = sum(p.nbytes for p in whole.parameters())
    experts = staging_bytes(experts_at(whole, 0))
    return total - (LAYERS - num_resident - 2) * experts, total


def load(folder: Path, num_resident: int, offload: Offload, scheme: str = "none") -> HunyuanImage:
    budget, _ = weights_bytes(folder, num_resident)
    options = replace(FLOAT32, weights_bytes=budget, offload=offload, quantization=scheme)
    return load_model(folder, options)


def offloaded_layers(transformer: HunyuanImage) -> list[int]:
    return [] if transformer.expert_offload is None else list(transformer.expert_offload.layers)


def offloader_of(transformer: HunyuanImage) -> ExpertOffloader:
    assert isinstance(transformer.expert_offload, ExpertOffloader)
    return transformer.expert_offload


def experts_at(transformer: HunyuanImage, layer: int) -> Experts:
    return experts_of(transformer, [layer])[layer]


@pytest.mark.parametrize("offload", ["cpu", "disk"])
@pytest.mark.parametrize("num_resident", [0, 1, 2])
def test_hidden_states_are_bit_for_bit_those_of_resident_weights(
    deep: Path, num_resident: int, offload: Offload
) -> None:
    whole, fetched = load_model(deep, FLOAT32), load(deep, num_resident, offload)
    assert len(offloaded_layers(fetched)) == LAYERS - num_resident
    with torch.inference_mode():
        for ids in (range(50), range(3), [7], range(60, 90), [8, 9]):
            ours = prefill(fetched, list(ids)).hidden_1SD
            assert torch.equal(ours, prefill(whole, list(ids)).hidden_1SD)


@pytest.mark.parametrize(
    ("num_resident", "offloaded"), [(0, [0, 1, 2, 3, 4]), (1, [1, 2, 3, 4]), (2, [1, 3, 4])]
)
def test_resident_layers_are_spread_among_the_others_and_the_first_comes_first(
    deep: Path, num_resident: int, offloaded: list[int]
) -> None:
    assert offloaded_layers(load(deep, num_resident, "cpu")) == offloaded


def test_everything_stays_when_there_is_room(deep: Path) -> None:
    _, total = weights_bytes(deep, 0)
    assert choose_offloaded(load_model(deep, FLOAT32), replace(FLOAT32, weights_bytes=total)) == ()


def test_too_little_memory_for_anything_is_refused_with_what_would_do(deep: Path) -> None:
    with pytest.raises(ConfigError, match=r"and need 0\.\d+ even if .*worker\.device_memory_gb"):
        load_model(deep, replace(FLOAT32, weights_bytes=1000))


def test_parameters_never_take_more_than_they_may(deep: Path) -> None:
    budget, _ = weights_bytes(deep, 1)
    transformer = load(deep, 1, "disk")
    with torch.inference_mode():
        prefill(transformer, list(range(50)))
    offloader = offloader_of(transformer)
    offloaded = offloaded_layers(transformer)
    away = {p for i in offloaded for p in experts_at(transformer, i).parameters()}
    resident = sum(p.nbytes for p in transformer.parameters() if p not in away)
    buffers = sum(buffer.memory.nbytes for buffer in offloader._buffers)
    assert resident + buffers <= budget


def test_a_token_of_text_fetches_only_the_experts_it_is_routed_to(deep: Path) -> None:
    transformer = load(deep, 0, "disk")
    with torch.inference_mode():
        past = prefill(transformer, list(range(40)))
        offloader = offloader_of(transformer)
        offloader._thread.submit(int).result(10)  # what was fetched ahead is there
        before = offloader.bytes_copied
        prefill(transformer, [5], past)
    experts = experts_at(transformer, 0)
    one = sum(p.nbytes for p in experts.parameters()) // len(experts.down_proj)
    top_k = transformer.config.layers[0].experts_per_token
    assert offloader.bytes_copied - before <= LAYERS * top_k * one + LAYERS


class SlowSource:
    """Records the thread of each copy; some layers hang, and some cannot be read."""

    def __init__(self) -> None:
        self.fetched: list[tuple[int, str]] = []
        self.hanging: dict[int, threading.Event] = {}
        self.broken: set[int] = set()

    def fill(self, layer: int, tensors: Mapping[str, Tensor], experts: Sequence[int]) -> None:
        self.fetched.append((layer, threading.current_thread().name))
        if layer in self.hanging:
            assert self.hanging[layer].wait(10)
        if layer in self.broken:
            raise CheckpointError("the disk is gone")
        for tensor in tensors.values():
            tensor.fill_(layer)


@pytest.fixture
def slow(deep: Path) -> tuple[SlowSource, ExpertOffloader, dict[int, Experts]]:
    config = load_config(deep)
    experts = {i: Experts(8, config.layers[0], RankGroup()) for i in range(3)}
    source = SlowSource()
    return source, ExpertOffloader(experts, source, torch.device("cpu")), experts


EVERY = list(range(8))


def test_the_next_layer_is_fetched_while_this_one_computes(
    slow: tuple[SlowSource, ExpertOffloader, dict[int, Experts]],
) -> None:
    source, offloader, experts = slow
    source.hanging = {1: threading.Event()}
    offloader.acquire(0, EVERY)  # layer 1 is on its way and hangs; layer 0 can be used all the same
    assert (experts[0].down_proj == 0).all()
    source.hanging[1].set()
    offloader.acquire(1, EVERY)
    assert (experts[1].down_proj == 1).all()
    offloader.acquire(2, EVERY)
    offloader.acquire(0, EVERY)
    offloader.close()
    here = threading.current_thread().name
    assert [layer for layer, thread in source.fetched if thread == here] == [0]
    assert [layer for layer, _ in source.fetched] == [0, 1, 2, 0, 1]


def test_a_layer_that_is_asked_for_again_is_still_there(
    slow: tuple[SlowSource, ExpertOffloader, dict[int, Experts]],
) -> None:
    """A step cache runs the first layer alone, step after step."""
    source, offloader, _ = slow
    for _ in range(4):
        offloader.acquire(0, EVERY)
    offloader.close()
    assert [layer for layer, _ in source.fetched] == [0, 1]


def test_a_fetch_that_fails_ahead_fails_again_when_it_is_needed_and_may_then_succeed(
    slow: tuple[SlowSource, ExpertOffloader, dict[int, Experts]],
) -> None:
    source, offloader, experts = slow
    offloader.acquire(0, EVERY)
    offloader.acquire(1, EVERY)
    source.broken = {0}
    offloader.acquire(2, EVERY)  # layer 0 fails ahead
    with pytest.raises(CheckpointError, match="disk is gone"):
        offloader.acquire(0, EVERY)
    source.broken = set()
    offloader.acquire(0, EVERY)
    assert (experts[0].down_proj == 0).all()
    offloader.close()


def test_quantized_experts_are_fetched_too(deep: Path, tmp_path: Path) -> None:
    quantize_folder(deep, tmp_path / "small", SCHEMES["int4"])
    whole = load_model(tmp_path / "small", FLOAT32)
    experts = staging_bytes(experts_at(whole, 0))
    budget = sum(p.nbytes for p in whole.parameters()) - (LAYERS - 2) * experts
    for offload in get_args(Offload):
        fetched = load_model(
            tmp_path / "small", replace(FLOAT32, weights_bytes=budget, offload=offload)
        )
        with torch.inference_mode():
            ours = prefill(fetched, list(range(50))).hidden_1SD
            assert torch.equal(ours, prefill(whole, list(range(50))).hidden_1SD)
    rounding = LoadOptions(
        dtype=torch.float32, weights_bytes=budget, offload="disk", quantization="int4"
    )
    with pytest.raises(ConfigError, match="hyimage quantize"):
        load_model(deep, rounding)


def test_a_rank_fetches_its_own_part(deep: Path) -> None:
    mesh = Mesh(tensor=RankGroup(1, 2), rank=1, size=2)
    whole = load_model(deep, FLOAT32, mesh=mesh)
    experts = experts_at(whole, 3)
    total = sum(p.nbytes for p in whole.parameters())
    options = replace(FLOAT32, weights_bytes=total - 3 * staging_bytes(experts), offload="disk")
    fetched = load_model(deep, options, mesh=mesh)
    ours = experts_at(fetched, 3)
    offloader_of(fetched).acquire(3, EVERY)
    assert torch.equal(ours.down_proj, experts.down_proj)
    assert torch.equal(ours.gate_and_up_proj, experts.gate_and_up_proj)


def test_a_worker_keeps_to_its_memory_and_generates_the_same_image(
    deep: Path, image_request: ImageRequest
) -> None:
    settings = PipelineSettings(checkpoint=str(deep))
    workspace = plan_step_memory(load_config(deep), FLOAT32, None, settings)
    budget, _ = weights_bytes(deep, 1)
    tight = settings.model_copy(update={"device_memory_gb": (workspace + budget) / 1e9})
    images = []
    for case in (settings, tight):
        pipeline = load_pipeline(case)
        assert len(offloaded_layers(pipeline.transformer)) == (LAYERS - 1 if case is tight else 0)
        images.append(
            [
                e.pixels_yx3.tobytes()
                for e in generate(pipeline, image_request)
                if isinstance(e, ImageDone)
            ]
        )
    assert images[0] == images[1]
    with pytest.raises(ConfigError, match="weights may take"):
        load_pipeline(settings.model_copy(update={"device_memory_gb": workspace / 1e9}))
