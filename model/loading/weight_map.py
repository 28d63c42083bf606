"""Checkpoint tensor names and where each one goes. One rule: experts are stacked, all else equal.

model.layers.3.mlp.experts.7.down_proj.weight -> model.layers.3.mlp.experts.down_proj[7]

Quantized checkpoints have a tensor `..._scale` beside every rounded one.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from model.config import ModelConfig
from model.loading.shard_plan import ShardSlice, own_expert, plan_shard_slice
from model.mesh import Group
from model.quantization.modules import quantize_layers
from model.quantization.scheme import SCALE_SUFFIX, Scheme
from model.transformer import HunyuanImage
from model.vision import vision_tower_shapes

ELSEWHERE = "on another rank"  # stands for a parameter that this rank does not have
_STACKED = re.compile(
    r"(?P<stem>.*\.experts)\.(?P<name>gate_and_up_proj|down_proj)(?P<scale>_scale)?"
)


@dataclass(frozen=True, slots=True)
class ParameterSlot:
    """A checkpoint tensor's place: a parameter, or one expert's slice of it.

    `shape` is that of the stored tensor, `dtype` what it has to be, None for any float; on a mesh
    `part` is what this rank holds of it.
    """

    parameter: str
    expert: int | None
    shape: tuple[int, ...]
    part: ShardSlice | None = None
    dtype: torch.dtype | None = None

    def view(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the memory that this tensor fills."""
        whole = parameters[self.parameter].detach()
        return whole if self.expert is None else whole[self.expert]

    def scale_view(self, parameters: Mapping[str, Tensor]) -> Tensor | None:
        """Return the memory of the scales, where the parameter is held rounded."""
        name = self.parameter + SCALE_SUFFIX
        return replace(self, parameter=name).view(parameters) if name in parameters else None


def list_slots(transformer: HunyuanImage, stored: Scheme | None = None) -> dict[str, ParameterSlot]:
    """Return the place of every checkpoint tensor of this model, by checkpoint name.

    `stored` tells how a quantized checkpoint lies on disk. The vision tower's tensors are listed
    even where it is not built, so that checkpoints are held to them.

    Raises:
        ConfigError: ranks would have to share a scale.
    """
    group, config = transformer.mesh.tensor, transformer.config
    with init_empty_weights(include_buffers=True):
        whole = HunyuanImage(config, has_vision=transformer.vision_model is not None)
        if stored is not None:
            quantize_layers(whole, stored)
    targets = {name: _on_rank(name, target, group, config) for name, target in _targets(whole)}
    if transformer.vision_model is None:
        for name, shape in vision_tower_shapes(transformer.config.vision).items():
            targets[f"vision_model.{name}"] = ParameterSlot(f"vision_model.{name}", None, shape)
    return targets


def _on_rank(name: str, target: ParameterSlot, group: Group, config: ModelConfig) -> ParameterSlot:
    """Return what becomes of a tensor's place when ranks share the model out."""
    if group.expert_parallel and target.expert is not None:
        layer = config.layers[int(target.parameter.split(".")[2])]
        index = own_expert(target.expert, layer.num_experts, group)
        if index is None:
            return replace(target, parameter=ELSEWHERE)
        return replace(target, expert=index)
    return replace(target, part=plan_shard_slice(name, target.shape, group.rank, group.size))


def _targets(module: nn.Module) -> Iterator[tuple[str, ParameterSlot]]:
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
