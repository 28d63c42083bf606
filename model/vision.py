"""SigLIP2 vision tower, its patches and its aligner: not run for text-to-image."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
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


def patch_grid(width: int, height: int, patch_size: int, max_patches: int) -> tuple[int, int]:
    """Return the grid of patches, (down, across), in which the tower sees an image.

    The largest scale is taken at which no more than `max_patches` cover the image.

    Source: `get_image_size_for_max_num_patches`, SigLIP2 in transformers 4.57.
    """

    def grid(scale: float) -> tuple[int, int]:
        down, across = (max(1, math.ceil(side * scale / patch_size)) for side in (height, width))
        return down, across

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        if math.prod(grid(middle)) <= max_patches:
            low = middle
        else:
            high = middle
    return grid(low)


def cut_patches(
    rgb_yx3: Tensor, grid: tuple[int, int], patch_size: int, max_patches: int
) -> Tensor:
    """Return an image's patches for the tower, row by row, in [-1, 1]; rows of zeros fill up.

    A patch is flattened as (row, column, channel). Resized on the CPU in uint8, where the release's
    torchvision resizes too.

    Shapes: rgb_yx3 uint8, grid (down, across) -> patches_SZ float32 with S = max_patches.
    """
    down, across = grid
    resized_13yx = F.interpolate(
        rgb_yx3.movedim(-1, 0).unsqueeze(0),
        size=(down * patch_size, across * patch_size),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )
    cells = resized_13yx[0].unflatten(1, (down, patch_size)).unflatten(3, (across, patch_size))
    values_SZ = cells.permute(1, 3, 2, 4, 0).flatten(0, 1).flatten(1)
    patches_SZ = torch.zeros(max_patches, values_SZ.shape[1])
    patches_SZ[: down * across] = (values_SZ.float() - 127.5) / 127.5
    return patches_SZ
