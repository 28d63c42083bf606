"""Architecture of one checkpoint: sizes of the transformer and of the VAE. Free of torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class MoeConfig:
    """The mixture of experts of one layer."""

    num_experts: int
    experts_per_token: int
    expert_width: int
    num_shared_experts: int
    normalize_weights: bool

    def __post_init__(self) -> None:
        if not 1 <= self.experts_per_token <= self.num_experts:
            raise ConfigError(
                f"moe_topk is {self.experts_per_token}; with {self.num_experts} experts it must be "
                f"between 1 and {self.num_experts}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class VaeConfig:
    """The convolutional autoencoder between pixels and latents."""

    block_channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    rgb_channels: int
    spatial_factor: int
    temporal_factor: int
    match_channels_down: bool
    match_channels_up: bool
    scaling_factor: float
    shift_factor: float
    norm_num_groups: int

    @property
    def num_spatial_levels(self) -> int:
        return self.spatial_factor.bit_length() - 1

    @property
    def num_temporal_levels(self) -> int:
        return self.temporal_factor.bit_length() - 1

    def __post_init__(self) -> None:
        for name in ("spatial_factor", "temporal_factor"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ConfigError(f"vae {name} is {value}; it must be a power of two")
        if self.num_spatial_levels > len(self.block_channels) - 1:
            raise ConfigError(
                f"vae ffactor_spatial {self.spatial_factor} needs {self.num_spatial_levels + 1} "
                f"entries in block_out_channels, which has {len(self.block_channels)}"
            )
        if self.temporal_factor > self.spatial_factor:
            raise ConfigError(
                f"vae ffactor_temporal {self.temporal_factor} exceeds ffactor_spatial "
                f"{self.spatial_factor}"
            )
        for channels in self.block_channels:
            if channels % self.norm_num_groups:
                raise ConfigError(
                    f"vae block_out_channels has {channels}, which {self.norm_num_groups} norm "
                    "groups do not divide; set norm_num_groups in the vae section"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Architecture of one checkpoint. Sizes have no defaults but those of the official files."""

    vocab_size: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    use_qk_norm: bool
    rms_norm_eps: float
    rope_theta: float
    max_positions: int
    layers: tuple[MoeConfig, ...]
    image_base_size: int
    patch_hidden_size: int
    norm_num_groups: int
    vae: VaeConfig
    vision: Mapping[str, Any]
    vision_aligner: Mapping[str, Any]
    # Tokens of the vision tower for an input image, however few patches it has.
    # Source: vit_processor.max_num_patches in config.json of the official checkpoints.
    max_patches: int = 1024
    # Instruct-Distil: guidance is an input instead of a second row, and the model predicts the
    # mean velocity to the next noise level, which is an input too.
    is_guidance_distilled: bool = False
    is_meanflow: bool = False

    @property
    def step_tokens(self) -> tuple[str, ...]:
        """Return the control tokens of a denoising step that stand before the image."""
        return (
            "<timestep>",
            *(("<guidance>",) if self.is_guidance_distilled else ()),
            *(("<timestep_r>",) if self.is_meanflow else ()),
        )

    @property
    def pixels_per_token(self) -> int:
        return self.vae.spatial_factor

    @property
    def patch_size(self) -> int:
        """Return the side of the vision tower's patches in pixels; 0 without a tower."""
        return int(self.vision.get("patch_size", 0))

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"{self.num_heads} attention heads cannot share {self.num_kv_heads} key/value "
                "heads; the number of heads must be a multiple"
            )
        if self.head_dim % 4:
            raise ConfigError(f"head_dim is {self.head_dim}; 2D RoPE needs a multiple of 4")
        for name in ("hidden_size", "patch_hidden_size"):
            if getattr(self, name) % self.norm_num_groups:
                raise ConfigError(
                    f"{name} {getattr(self, name)} is not a multiple of the "
                    f"{self.norm_num_groups} norm groups; set norm_num_groups"
                )
