"""The architecture of the trained tiny checkpoint: fields of its config.json."""

from typing import Any

from model.config import ModelConfig
from model.config_file import parse_config
from training.random_checkpoint import CONTROL_TOKENS, TINY_CONFIG

# Byte alphabet and merges; the control tokens follow.
NUM_TEXT_TOKENS = 1536
VOCAB_SIZE = NUM_TEXT_TOKENS + len(CONTROL_TOKENS)

FIELDS: dict[str, Any] = {
    **TINY_CONFIG,
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "attention_head_dim": 32,
    "intermediate_size": 176,
    "moe_intermediate_size": 176,
    "num_experts": 8,
    "moe_topk": 2,
    "num_shared_expert": 1,
    # A pair of channels, + and -, per latent channel: see training/transformer_start.py.
    "patch_embed_hidden_dim": 96,
    "norm_num_groups": 16,
    "vae": {
        **TINY_CONFIG["vae"],
        "block_out_channels": [12, 24, 48, 96, 96, 96, 96],
        # Four channels a group at full resolution: one colour each, see training/vae_start.py.
        "norm_num_groups": 3,
        "latent_channels": 48,
        "layers_per_block": 0,
    },
    "vit_aligner": {"projector_type": "mlp_gelu", "input_dim": 32, "n_embed": 256, "depth": 2},
}


def build_config() -> ModelConfig:
    """Return the parsed architecture."""
    return parse_config(FIELDS, source="training/architecture.py")
