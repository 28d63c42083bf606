"""Checkpoint tensor names and where each one goes. One rule: experts are stacked, all else equal.

model.layers.3.mlp.experts.7.down_proj.weight -> model.layers.3.mlp.experts.down_proj[7]
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from accelerate import init_empty_weights
from torch import Tensor, nn

from model.loading.shard_plan import Part, plan_part
from model.transformer import HunyuanImage
from model.vision import vision_tower_shapes

_STACKED = re.compile(r"(?P<stem>.*\.experts)\.(?P<name>gate_and_up_proj|down_proj)")


@dataclass(frozen=True, slots=True)
class Target:
    """A checkpoint tensor's place: a parameter, or one expert's slice of it.

    `shape` is that of the stored tensor; on a mesh `part` is what this rank holds of it.
    """

    parameter: str
    expert: int | None
    shape: tuple[int, ...]
    part: Part | None = None

    def view(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the memory that this tensor fills."""
        whole = parameters[self.parameter].detach()
        return whole if self.expert is None else whole[self.expert]


def list_targets(transformer: HunyuanImage) -> dict[str, Target]:
    """Return the place of every checkpoint tensor of this model, by checkpoint name.

    The vision tower's are listed even where it is not built, so that checkpoints are held to them.
    """
    group, config = transformer.mesh.tensor, transformer.config
    if group.size > 1:
        with init_empty_weights(include_buffers=True):
            whole = HunyuanImage(config, has_vision=transformer.vision_model is not None)
        targets = {
            name: replace(target, part=plan_part(name, target.shape, group.rank, group.size))
            for name, target in _targets(whole)
        }
    else:
        targets = dict(_targets(transformer))
    if transformer.vision_model is None:
        for name, shape in vision_tower_shapes(transformer.config.vision).items():
            targets[f"vision_model.{name}"] = Target(f"vision_model.{name}", None, shape)
    return targets


def _targets(module: nn.Module) -> Iterator[tuple[str, Target]]:
    for name, parameter in module.named_parameters():
        stacked = _STACKED.fullmatch(name)
        if stacked is None:
            yield name, Target(name, None, tuple(parameter.shape))
            continue
        for expert in range(parameter.shape[0]):
            checkpoint_name = f"{stacked['stem']}.{expert}.{stacked['name']}.weight"
            yield checkpoint_name, Target(name, expert, tuple(parameter.shape[1:]))
