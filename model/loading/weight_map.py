"""Map of checkpoint tensor names to parameters: experts are stacked, all other names are equal.

model.layers.3.mlp.experts.7.down_proj.weight -> model.layers.3.mlp.experts.down_proj[7]

Quantized checkpoints have a tensor `..._scale` beside every quantized one.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from model.config import ModelConfig
from model.loading.shard_plan import ShardSlice, local_expert, plan_shard_slice
from model.mesh import RankGroup
from model.quantization.modules import quantize_layers
from model.quantization.scheme import SCALE_SUFFIX, Scheme
from model.transformer import HunyuanImage
from model.vision import vision_tower_shapes

_STACKED = re.compile(
    r"(?P<stem>.*\.experts)\.(?P<name>gate_and_up_proj|down_proj)(?P<scale>_scale)?"
)


@dataclass(frozen=True, slots=True)
class ParameterSlot:
    """The parameter that a checkpoint tensor fills, or one expert's slice of it.

    `parameter` is None if another rank holds the tensor. `shape` is that of the stored tensor,
    `dtype` its required dtype, None for any float; `shard` is what this rank holds of it, None for
    all.
    """

    parameter: str | None
    expert: int | None
    shape: tuple[int, ...]
    shard: ShardSlice | None = None
    dtype: torch.dtype | None = None

    @property
    def local_shape(self) -> tuple[int, ...]:
        """Return the shape of this rank's shard."""
        return self.shape if self.shard is None else self.shard.shape(self.shape)

    def view(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the memory that this tensor fills."""
        assert self.parameter is not None, "another rank holds this tensor"
        stacked = parameters[self.parameter].detach()
        return stacked if self.expert is None else stacked[self.expert]

    def scale_view(self, parameters: Mapping[str, Tensor]) -> Tensor | None:
        """Return the memory of the scales, where the parameter is quantized."""
        if self.parameter is None or self.parameter + SCALE_SUFFIX not in parameters:
            return None
        return replace(self, parameter=self.parameter + SCALE_SUFFIX).view(parameters)


def list_slots(transformer: HunyuanImage, stored: Scheme | None = None) -> dict[str, ParameterSlot]:
    """Return the slot of every checkpoint tensor of this model, by checkpoint name.

    `stored` is the scheme of a checkpoint that is quantized on disk. The vision tower's tensors are
    listed even where it is not built, so that they are checked.

    Raises:
        ConfigError: ranks would have to share a scale.
    """
    ranks, config = transformer.mesh.tensor, transformer.config
    with init_empty_weights(include_buffers=True):
        whole = HunyuanImage(config, has_vision=transformer.vision_model is not None)
        if stored is not None:
            quantize_layers(whole, stored)
    slots = {name: _on_rank(name, slot, ranks, config) for name, slot in _whole_slots(whole)}
    if transformer.vision_model is None:
        for name, shape in vision_tower_shapes(transformer.config.vision).items():
            slots[f"vision_model.{name}"] = ParameterSlot(f"vision_model.{name}", None, shape)
    return slots


def _on_rank(
    name: str, slot: ParameterSlot, ranks: RankGroup, config: ModelConfig
) -> ParameterSlot:
    """Return the slot of a tensor on one of several ranks."""
    if ranks.expert_parallel and slot.expert is not None:
        layer = config.layers[int(name.split(".")[2])]
        index = local_expert(slot.expert, layer.num_experts, ranks)
        return replace(slot, parameter=None if index is None else slot.parameter, expert=index)
    return replace(slot, shard=plan_shard_slice(name, slot.shape, ranks.rank, ranks.size))


def _whole_slots(module: nn.Module) -> Iterator[tuple[str, ParameterSlot]]:
    for name, parameter in module.named_parameters():
        stacked = _STACKED.fullmatch(name)
        dtype = None if parameter.dtype == torch.float32 else parameter.dtype
        if stacked is None:
            yield name, ParameterSlot(name, None, tuple(parameter.shape), dtype=dtype)
            continue
        scale = stacked["scale"] or ""
        for expert in range(parameter.shape[0]):
            checkpoint_name = f"{stacked['stem']}.{expert}.{stacked['name']}.weight{scale}"
            yield (
                checkpoint_name,
                ParameterSlot(name, expert, tuple(parameter.shape[1:]), dtype=dtype),
            )
