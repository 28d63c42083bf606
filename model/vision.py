"""SigLIP2 vision tower and its aligner: part of every checkpoint, not run for text-to-image."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from model.errors import ConfigError

_CONFIG_FIELDS = (
    "attention_dropout", "hidden_act", "hidden_size", "intermediate_size", "layer_norm_eps",
    "num_attention_heads", "num_channels", "num_hidden_layers", "num_patches", "patch_size",
)  # fmt: skip


def build_vision_tower(fields: Mapping[str, Any]) -> nn.Module | None:
    """Return the tower for the `vit` section of config.json, or None without one."""
    if not fields:
        return None
    # Imported here: it takes seconds, and text-to-image does without.
    from transformers import Siglip2VisionConfig, Siglip2VisionModel

    config = Siglip2VisionConfig(**{k: fields[k] for k in _CONFIG_FIELDS if k in fields})
    tower: nn.Module = Siglip2VisionModel(config)
    return tower


def vision_tower_shapes(fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the tower's parameter names and shapes without building it."""
    if not fields:
        return {}
    width, inner = int(fields["hidden_size"]), int(fields["intermediate_size"])
    patch = int(fields["num_channels"]) * int(fields["patch_size"]) ** 2
    linears = {
        "embeddings.patch_embedding": (width, patch),
        "head.attention.out_proj": (width, width),
        "head.mlp.fc1": (inner, width),
        "head.mlp.fc2": (width, inner),
    }
    norms = ["post_layernorm", "head.layernorm"]
    for layer in range(int(fields["num_hidden_layers"])):
        stem = f"encoder.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linears[f"{stem}.self_attn.{name}"] = (width, width)
        linears[f"{stem}.mlp.fc1"], linears[f"{stem}.mlp.fc2"] = (inner, width), (width, inner)
        norms += [f"{stem}.layer_norm1", f"{stem}.layer_norm2"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.position_embedding.weight": (int(fields["num_patches"]), width),
        "head.probe": (1, 1, width),
        "head.attention.in_proj_weight": (3 * width, width),
        "head.attention.in_proj_bias": (3 * width,),
    }
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return shapes


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
