"""Memory of reading input images beside the weights, counted on the meta device.

Encoder and prefill are run there with the product's own code. The vision tower is not: it needs
values, and takes less than the encoder, which runs after it.
"""

from dataclasses import dataclass

import torch

from model.image_block import ImageBlock, ImageGrid, count_block_tokens
from model.image_input import EmbeddedImage
from model.kv_cache import prefill
from model.planning.live_bytes import LiveBytes
from model.planning.meta_step import Workload, largest_input_size
from model.transformer import HunyuanImage


@dataclass(frozen=True, kw_only=True, slots=True)
class InputMemory:
    """Bytes of encoding an input image, and of prefilling a prompt with all of them.

    The prompt's keys and values are not in them.
    """

    encode: int
    prefill: int


def measure_input_memory(transformer: HunyuanImage, workload: Workload) -> InputMemory:
    """Return what a rank's meta model needs beside its weights to read a workload's input images.

    In inference mode, with attention fused, and with the layers in bfloat16.
    """
    config = transformer.config
    size, stride = largest_input_size(config), config.pixels_per_token
    known = list(transformer.parameters())
    rgb_13yx = torch.empty(1, 3, size.height_px, size.width_px, device="meta")
    with LiveBytes(known) as live:
        transformer.vae.encode(rgb_13yx)
        encode = live.peak
    grid = ImageGrid(
        size.index, size.height_px // stride, size.width_px // stride, 1, 1, config.max_patches
    )
    images = _place(transformer, grid, workload.input_images)
    ids = [0] * workload.past_tokens(config)
    with LiveBytes(known) as live:
        prompt = prefill(transformer, ids, None, images)
        prompt_kv = 2 * sum(layer.k_BGSH.nbytes for layer in prompt.layers)
        return InputMemory(encode=encode + rgb_13yx.nbytes, prefill=live.peak - prompt_kv)


def _place(transformer: HunyuanImage, grid: ImageGrid, count: int) -> list[EmbeddedImage]:
    """Return embedded images that follow one another from the start of a prompt."""
    num_latent = grid.height * grid.width
    length = count_block_tokens(num_latent, grid.num_slots)
    width, dtype = transformer.config.hidden_size, transformer.dtype
    return [
        EmbeddedImage(
            identity=str(number),
            block=ImageBlock.after(number * length, grid),
            timestep_1D=torch.empty(1, width, dtype=dtype, device="meta"),
            latent_1SD=torch.empty(1, num_latent, width, dtype=dtype, device="meta"),
            vision_1SD=torch.empty(1, grid.num_slots, width, dtype=dtype, device="meta"),
        )
        for number in range(count)
    ]
