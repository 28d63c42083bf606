"""Memory of a denoising step and a decode beside the weights, counted on the meta device.

Both are run there with the product's own code, so that no formula can fall behind it.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from model.planning.live_bytes import LiveBytes
from model.planning.meta_step import MetaStep, SilentGroup, Workload, in_bfloat16
from model.transformer import HunyuanImage


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMemory:
    """Bytes of the prompts, and of a step and of a decode at their worst.

    `hidden` is the size of all hidden states at one place between two layers.
    """

    prefix: int
    activations: int
    vae: int
    hidden: int


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
    wider = dtype.itemsize / torch.bfloat16.itemsize
    # Each row of an image has a prompt of its own.
    prefix = 2 * sum(layer.k_BGSH.nbytes for layer in step.past_kv) * min(step.rows, 2)
    return StepMemory(
        prefix=int(prefix * wider),
        activations=int(activations * wider),
        vae=vae,
        hidden=step.num_tokens * transformer.config.hidden_size * dtype.itemsize,
    )


class _FusedAttention(TorchFunctionMode):
    """Runs attention as the fused kernel does; alone, meta tensors go the long way, with scores."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention(*args[:3])[0]
        return func(*args, **(kwargs or {}))
