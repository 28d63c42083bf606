"""The SigLIP2 vision tower and its aligner, part of every checkpoint; text-to-image skips them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import Siglip2VisionConfig, Siglip2VisionModel

from model.errors import ConfigError

_CONFIG_FIELDS = (
    "attention_dropout", "hidden_act", "hidden_size", "intermediate_size", "layer_norm_eps",
    "num_attention_heads", "num_channels", "num_hidden_layers", "num_patches", "patch_size",
)  # fmt: skip


def build_vision_tower(fields: Mapping[str, Any]) -> nn.Module | None:
    """Return the tower for the `vit` section of config.json, or None without one."""
    if not fields:
        return None
    config = Siglip2VisionConfig(**{k: fields[k] for k in _CONFIG_FIELDS if k in fields})
    tower: nn.Module = Siglip2VisionModel(config)
    return tower


class VisionAligner(nn.Module):
    """MLP from the tower's width to the transformer's.

    Shapes: x_BSZ -> x_BSD.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        if not fields:
            return
        if fields.get("projector_type") != "mlp_gelu":
            raise ConfigError(
                f"vit_aligner projector_type is {fields.get('projector_type')}; "
                "only mlp_gelu is implemented"
            )
        width = int(fields["n_embed"])
        self.layers.append(nn.Linear(int(fields["input_dim"]), width))
        for _ in range(1, int(fields["depth"])):
            self.layers.append(nn.GELU())
            self.layers.append(nn.Linear(width, width))

    def forward(self, x_BSZ: Tensor) -> Tensor:
        return self.layers(x_BSZ)
