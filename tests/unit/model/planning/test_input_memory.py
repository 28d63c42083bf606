"""What reading input images is planned to take is what it takes."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.image_block import ImageBlock, ImageGrid
from model.image_input import EmbeddedImage
from model.kv_cache import PromptKV, prefill
from model.loading.build import load_model
from model.loading.options import LoadOptions
from model.mesh import SINGLE
from model.planning.live_bytes import LiveBytes
from model.planning.meta_step import Workload, build_meta_model, largest_input_size
from model.planning.step_memory import measure_step_memory
from model.transformer import HunyuanImage
from tests.conftest import GOLDEN_CHECKPOINT
from tests.unit.model.planning.test_memory_plan import measure_peak, use_grouped_experts

OPTIONS = LoadOptions(dtype=torch.bfloat16, vae_dtype=torch.bfloat16, skip=())
WORKLOAD = Workload(prompt_tokens=40, input_images=2)


@pytest.fixture(scope="module")
def loaded() -> HunyuanImage:
    """The recorded checkpoint with the grouped products of CUDA, on the CPU."""
    transformer = load_model(GOLDEN_CHECKPOINT, OPTIONS)
    use_grouped_experts(transformer)
    return transformer


def planned(loaded: HunyuanImage) -> HunyuanImage:
    return build_meta_model(loaded.config, SINGLE, OPTIONS, None)


def embedded(loaded: HunyuanImage, start: int) -> EmbeddedImage:
    config = loaded.config
    size, stride = largest_input_size(config), config.pixels_per_token
    height, width = size.height_px // stride, size.width_px // stride

    def tokens(*shape: int) -> Tensor:
        return torch.zeros(*shape, config.hidden_size, dtype=torch.bfloat16)

    return EmbeddedImage(
        identity=str(start),
        block=ImageBlock.after(start, ImageGrid(0, height, width, 8, 8, config.max_patches)),
        timestep_1D=tokens(1),
        latent_1SD=tokens(1, height * width),
        vision_1SD=tokens(1, config.max_patches),
    )


@torch.inference_mode()
def test_the_planned_peak_of_encoding_is_that_of_the_tensors_of_a_run(
    loaded: HunyuanImage,
) -> None:
    """Without the workspaces of a CPU's convolutions, half as much again; a GPU has its own."""
    size = largest_input_size(loaded.config)
    with LiveBytes(loaded.parameters()) as live:
        loaded.vae.encode(torch.zeros(1, 3, size.height_px, size.width_px))
    plan = measure_step_memory(planned(loaded), WORKLOAD, torch.bfloat16)
    assert plan.encode == pytest.approx(live.peak, rel=0.02)


@torch.inference_mode()
def test_the_planned_peak_of_a_prefill_is_what_the_allocator_gives_out(
    loaded: HunyuanImage,
) -> None:
    ids = [0] * WORKLOAD.past_tokens(loaded.config)
    first = embedded(loaded, 0)
    images = [first, embedded(loaded, first.block.stop + 1)]
    prompts: list[PromptKV] = []

    def read() -> None:
        prompts[:] = [prefill(loaded, ids, None, images)]

    read()
    plan = measure_step_memory(planned(loaded), WORKLOAD, torch.bfloat16)
    prompts.clear()
    measured = measure_peak(read)
    held = sum(layer.k_BGSH.nbytes + layer.v_BGSH.nbytes for layer in prompts[0].layers)
    assert plan.prefill == pytest.approx(measured - held, rel=0.1)
    # One row of the two images, and both rows of the words.
    tokens = len(ids)
    assert plan.input_images == pytest.approx(held * (tokens - 40) / tokens, rel=0.001)
    assert plan.prompts == pytest.approx(2 * held * 40 / tokens, rel=0.001)


def test_without_input_images_nothing_is_read(loaded: HunyuanImage) -> None:
    plan = measure_step_memory(planned(loaded), replace(WORKLOAD, input_images=0), torch.bfloat16)
    assert (plan.encode, plan.prefill, plan.input_images) == (0, 0, 0)
    assert plan.prefix == plan.prompts
