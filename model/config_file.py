"""Parsing of a checkpoint's config.json into a ModelConfig. Free of torch."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.config import ModelConfig, MoeConfig, VaeConfig
from model.errors import ConfigError

log = logging.getLogger(__name__)

# Fields of config.json that select another architecture, with the only values implemented here.
# `false` stands where the official files write a literal false for "not used".
# Source: config.json of the official Base, Instruct and Instruct-Distil checkpoints.
_FIXED: dict[str, tuple[object, ...]] = {
    "model_type": ("hunyuan_image_3_moe",),
    "add_classification_head": (False,),
    "attention_bias": (False,),
    "cond_image_type": ("vae_vit",),
    "group_limited_greedy": (False,),
    "hidden_act": ("silu",),
    "img_proj_type": ("unet",),
    "mlp_bias": (False,),
    "moe_drop_tokens": (False,),
    "moe_layer_num_skipped": (0, False),
    "n_group": (False, 1),
    "norm_type": ("rms",),
    "patch_size": (1,),
    "position_embedding_xdrope": (False,),
    "pretraining_tp": (1,),
    "rope_type": ("2d",),
    "routed_scaling_factor": (False, 1.0),
    "tie_word_embeddings": (False,),
    "topk_group": (False, 1),
    "use_cla": (False,),
    "use_mixed_mlp_moe": (True, False),  # true = a shared expert, whose count has its own field
    "use_mla": (False,),
    "use_rotary_pos_emb": (True,),
    "vae_type": ("hunyuan-image-vae-v1",),
}

# Fields that are read below.
_READ = {
    "attention_head_dim", "cfg_distilled", "head_dim", "hidden_size", "image_base_size",
    "intermediate_size", "max_position_embeddings", "moe_intermediate_size", "moe_topk",
    "norm_num_groups", "norm_topk_prob", "num_attention_heads", "num_experts", "num_hidden_layers",
    "num_key_value_heads", "num_shared_expert", "patch_embed_hidden_dim", "rms_norm_eps",
    "rope_scaling", "rope_theta", "use_meanflow", "use_qk_norm", "vae", "vae_downsample_factor",
    "vit", "vit_aligner", "vit_processor", "vocab_size",
}  # fmt: skip

# Fields without influence on text-to-image mathematics: token ids (looked up by string in the
# tokenizer), training-time values, and names of Python files.
_IGNORED = {
    "_name_or_path", "anyres_pooling_size", "anyres_vit_max_image_size", "anyres_vit_two_views",
    "architectures", "attention_dropout", "auto_map", "bos_token_id", "cla_share_factor",
    "class_num", "cond_token_attn_type", "dense_list", "dtype", "eod_token_id", "eos_token_id",
    "im_end_id", "im_newline_id", "im_start_id", "image_token_id", "initializer_range",
    "kv_lora_rank", "mask_init_id", "moe_random_routing_dropped_token", "num_media_embeds",
    "pad_id", "pad_token_id", "pool_type", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim",
    "quantization_config",  # read by model/quantization/published.py
    "skip_cls_token", "text_end_id", "text_start_id", "torch_dtype", "transformers_version",
    "use_cache", "v_head_dim", "vae_autocast_dtype", "vae_dtype", "video_end_id",
    "video_start_id", "vit_add_patchemb_bias", "vit_downsample_factor", "vit_input_resolution",
    "vit_mapping_type", "vit_norm_type", "vit_patch", "vit_path",
    "vit_remove_prenorm", "vit_token", "vit_type", "vit_used_rms_norm", "xdrope_section",
}  # fmt: skip

_VAE_READ = {
    "block_out_channels", "downsample_match_channel", "ffactor_spatial", "ffactor_temporal",
    "in_channels", "latent_channels", "layers_per_block", "norm_num_groups", "out_channels",
    "scaling_factor", "shift_factor", "upsample_match_channel",
}  # fmt: skip
_VAE_IGNORED = {
    "_class_name", "_diffusers_version", "sample_size", "sample_tsize",
    "only_encoder", "enable_feature_caching",
}  # fmt: skip


def load_config(folder: Path) -> ModelConfig:
    """Read the architecture of the checkpoint in `folder` (or of a config.json given directly).

    Raises:
        ConfigError: the file is missing, is not JSON, or selects another architecture.
    """
    path = folder if folder.suffix == ".json" else folder / "config.json"
    return parse_config(read_json(path, ConfigError), source=str(path))


def read_json(path: Path, error: type[ValueError]) -> dict[str, Any]:
    """Return the JSON object in `path`.

    Raises:
        ValueError: of the given type, when the file cannot be read or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path} does not exist; is this the checkpoint folder?") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as e:
        raise error(f"{path} cannot be read as JSON ({e}); download it again") from None
    if not isinstance(value, dict):
        raise error(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


def parse_config(raw: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
    """Turn the fields of an official config.json into a ModelConfig.

    Raises:
        ConfigError: a field is missing, unknown and set, or selects another architecture.
    """
    _check_fields(raw, source)
    num_layers = _integer(raw, "num_hidden_layers", source)
    num_heads = _integer(raw, "num_attention_heads", source)
    hidden_size = _integer(raw, "hidden_size", source)
    head_dim = raw.get("attention_head_dim") or raw.get("head_dim") or hidden_size // num_heads
    vae = _parse_vae(raw.get("vae"), source)
    _check_strides(raw, vae, source)
    return ModelConfig(
        vocab_size=_integer(raw, "vocab_size", source),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=_integer(raw, "num_key_value_heads", source, num_heads),
        head_dim=int(head_dim),
        use_qk_norm=bool(raw.get("use_qk_norm", False)),
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-5)),
        rope_theta=float(raw.get("rope_theta", 10000.0)),
        max_positions=_integer(raw, "max_position_embeddings", source),
        layers=tuple(_parse_moe(raw, layer, num_layers, source) for layer in range(num_layers)),
        # The next three are absent from the official config.json files: the reference's defaults.
        image_base_size=_integer(raw, "image_base_size", source, 1024),
        patch_hidden_size=_integer(raw, "patch_embed_hidden_dim", source, 1024),
        norm_num_groups=_integer(raw, "norm_num_groups", source, 32),
        vae=vae,
        vision=dict(raw.get("vit") or {}),
        vision_aligner=dict(raw.get("vit_aligner") or {}),
        max_patches=_integer(
            raw.get("vit_processor") or {}, "max_num_patches", f"{source}: vit_processor", 1024
        ),
        is_guidance_distilled=bool(raw.get("cfg_distilled", False)),
        is_meanflow=bool(raw.get("use_meanflow", False)),
    )


def _check_fields(raw: Mapping[str, Any], source: str) -> None:
    for name, allowed in _FIXED.items():
        value = raw.get(name)
        if value is not None and value not in allowed:
            wanted = " or ".join(json.dumps(v) for v in allowed)
            raise ConfigError(
                f"{source}: {name} is {json.dumps(value)}, but only {wanted} is implemented; "
                "this checkpoint needs mathematics that this server does not have"
            )
    for name in sorted(raw.keys() - _FIXED.keys() - _READ - _IGNORED):
        if raw[name]:
            raise ConfigError(
                f"{source}: unknown field {name} = {json.dumps(raw[name])[:80]} may change the "
                "mathematics; update the server, or remove the field if it is informative only"
            )
        log.warning("%s: unknown field %s is unset and ignored", source, name)
    scaling = raw.get("rope_scaling") or {}
    if any(scaling.get(name, 1.0) != 1.0 for name in ("alpha", "factor")):
        raise ConfigError(f"{source}: rope_scaling {scaling} stretches RoPE; only 1.0 is supported")


def _check_strides(raw: Mapping[str, Any], vae: VaeConfig, source: str) -> None:
    factor = raw.get("vae_downsample_factor")
    if factor is not None and list(factor) != [vae.spatial_factor] * 2:
        raise ConfigError(
            f"{source}: vae_downsample_factor {factor} contradicts the vae's ffactor_spatial "
            f"{vae.spatial_factor}; tokens and latents would not line up"
        )


def _parse_moe(raw: Mapping[str, Any], layer: int, num_layers: int, source: str) -> MoeConfig:
    def per_layer(name: str, default: int | None = None) -> int:
        value = raw.get(name)
        if isinstance(value, list):
            if len(value) != num_layers:
                raise ConfigError(
                    f"{source}: {name} lists {len(value)} values for {num_layers} layers"
                )
            value = value[layer]
        return _integer({name: value}, name, source, default)

    num_experts = per_layer("num_experts")
    if num_experts < 2:
        raise ConfigError(f"{source}: num_experts is {num_experts}; this model needs at least 2")
    width = _integer(raw, "intermediate_size", source)
    return MoeConfig(
        num_experts=num_experts,
        experts_per_token=per_layer("moe_topk", 1),
        expert_width=per_layer("moe_intermediate_size", width),
        num_shared_experts=per_layer("num_shared_expert", 1)
        if raw.get("use_mixed_mlp_moe", True)
        else 0,
        normalize_weights=bool(raw.get("norm_topk_prob", True)),
    )


def _parse_vae(raw: object, source: str) -> VaeConfig:
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: the vae section is missing")
    for name in sorted(raw.keys() - _VAE_READ - _VAE_IGNORED):
        if raw[name]:
            raise ConfigError(
                f"{source}: unknown vae field {name} = {json.dumps(raw[name])[:80]} may change "
                "the mathematics; update the server, or remove it if it is informative only"
            )
    if raw["in_channels"] != raw["out_channels"]:
        raise ConfigError(
            f"{source}: vae reads {raw['in_channels']} and writes {raw['out_channels']} channels"
        )
    return VaeConfig(
        block_channels=tuple(raw["block_out_channels"]),
        layers_per_block=_integer(raw, "layers_per_block", source),
        latent_channels=_integer(raw, "latent_channels", source),
        rgb_channels=_integer(raw, "in_channels", source),
        spatial_factor=_integer(raw, "ffactor_spatial", source),
        temporal_factor=_integer(raw, "ffactor_temporal", source),
        match_channels_down=bool(raw.get("downsample_match_channel", True)),
        match_channels_up=bool(raw.get("upsample_match_channel", True)),
        scaling_factor=float(raw.get("scaling_factor") or 1.0),
        shift_factor=float(raw.get("shift_factor") or 0.0),
        norm_num_groups=_integer(raw, "norm_num_groups", source, 32),
    )


def _integer(raw: Mapping[str, Any], name: str, source: str, default: int | None = None) -> int:
    value = raw.get(name)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"{source}: {name} is {json.dumps(value)}, not a non-negative integer")
    return value
