"""Memory of a denoising step, a decode and input images beside the weights, on the meta device.

They are run there with the product's own code, so that no formula can fall behind it.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from model.planning.input_memory import InputMemory, measure_input_memory
from model.planning.live_bytes import LiveBytes
from model.planning.meta_step import MetaStep, SilentGroup, Workload, in_bfloat16
from model.transformer import HunyuanImage

NO_INPUTS = InputMemory(encode=0, prefill=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMemory:
    """Bytes of the prompts, and of a step and of a decode at their worst.

    `prompts` and `input_images` are keys and values; both rows of an image share those of its input
    images. `hidden` is the size of all hidden states at one place between two layers. `encode` and
    `prefill` are those of input images, 0 without any.
    """

    prompts: int
    input_images: int = 0
    activations: int
    vae: int
    hidden: int
    encode: int = 0
    prefill: int = 0

    @property
    def prefix(self) -> int:
        return self.prompts + self.input_images


def measure_step_memory(
    transformer: HunyuanImage, workload: Workload, dtype: torch.dtype
) -> StepMemory:
    """Return what a rank's meta model needs beside its weights for a workload.

    Its layers are run in bfloat16, the one dtype of a GPU's grouped products; other dtypes need
    as many values of another size. The model's parameters are bfloat16 afterwards.
    """
    in_bfloat16(transformer, dtype)
    with torch.inference_mode():
        step = MetaStep(transformer, workload)
        with LiveBytes(transformer.parameters()) as live, _FusedAttention():
            step.run()
            activations = live.peak
        latent_BCYX = step.latent_BCYX
        with LiveBytes(transformer.parameters()) as live, _FusedAttention():
            transformer.vae.decode(latent_BCYX, SilentGroup(0, transformer.mesh.size))
            vae = live.peak
        read = NO_INPUTS
        if workload.input_images:
            with _FusedAttention():
                read = measure_input_memory(transformer, workload)
    wider = dtype.itemsize / torch.bfloat16.itemsize
    past_tokens = workload.past_tokens(transformer.config)
    token = wider * 2 * sum(layer.k_BGSH.nbytes for layer in step.past_kv) / past_tokens
    # Each row of an image has a prompt of its own. Images share them, unless they have input
    # images, which are other samples for each.
    num_prompts = step.rows if workload.input_images else min(step.rows, 2)
    input_tokens = past_tokens - workload.prompt_tokens
    return StepMemory(
        prompts=int(token * workload.prompt_tokens * num_prompts),
        input_images=int(token * input_tokens * workload.images),
        activations=int(activations * wider),
        vae=vae,
        hidden=step.num_tokens * transformer.config.hidden_size * dtype.itemsize,
        encode=read.encode,
        prefill=int(read.prefill * wider),
    )


class _FusedAttention(TorchFunctionMode):
    """Runs attention as the fused kernel does; alone, meta tensors go the long way, with scores."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention(*args[:3])[0]
        return func(*args, **(kwargs or {}))
