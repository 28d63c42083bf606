"""A checkpoint with random weights in the official layout: it runs, and its images are noise.

For tests, and to try another architecture: `python -m training.random_checkpoint DIR`; with
`--middle` one of 3.9 GB, to measure loading and memory with.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from model.config_file import parse_config
from model.loading.build import build_skeleton
from model.loading.checkpoint import INDEX_NAME
from model.loading.weight_map import ParameterSlot, list_slots

NUM_RATIOS = 33  # 37 in Instruct checkpoints
CONTROL_TOKENS = (
    "<|endoftext|>", "<|startoftext|>", "<boi>", "<eoi>", "<img>", "<pad>", "<cfg>", "<timestep>",
    "<recaption>", "</recaption>", "<think>", "</think>", "<answer>", "</answer>",
    *(f"<img_size_{size}>" for size in (256, 512, 768, 1024)),
    *(f"<img_ratio_{i}>" for i in range(NUM_RATIOS)),
)  # fmt: skip
DISTILLED_TOKENS = ("<guidance>", "<timestep_r>")
EDITING_TOKENS = ("<joint_img_sep>",)  # in the block of an input image

TINY_CONFIG: dict[str, Any] = {
    "model_type": "hunyuan_image_3_moe",
    "architectures": ["HunyuanImage3ForCausalMM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_head_dim": 16,
    "use_qk_norm": True,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 22800,
    "intermediate_size": 48,
    "moe_intermediate_size": 48,
    "num_experts": 8,
    "moe_topk": 2,
    "num_shared_expert": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": False,
    "image_base_size": 1024,
    "patch_embed_hidden_dim": 32,
    "vae_downsample_factor": [64, 64],
    "vae": {
        "_class_name": "AutoencoderKLConv3D",
        "block_out_channels": [8, 16, 32, 32, 32, 32, 32],
        "norm_num_groups": 8,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 8,
        "layers_per_block": 1,
        "ffactor_spatial": 64,
        "ffactor_temporal": 1,
        "downsample_match_channel": True,
        "upsample_match_channel": True,
        "scaling_factor": 1.0,
    },
    "vit": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_channels": 3,
        "num_hidden_layers": 1,
        "num_patches": 16,
        "patch_size": 4,
    },
    "vit_aligner": {"projector_type": "mlp_gelu", "input_dim": 32, "n_embed": 64, "depth": 2},
}

MIDDLE_CONFIG: dict[str, Any] = {
    **TINY_CONFIG,
    "hidden_size": 1024,
    "num_hidden_layers": 36,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "attention_head_dim": 64,
    "intermediate_size": 512,
    "moe_intermediate_size": 512,
    "num_experts": 32,
    "vit_aligner": {"projector_type": "mlp_gelu", "input_dim": 32, "n_embed": 1024, "depth": 2},
}

GENERATION_CONFIG: dict[str, Any] = {
    "sequence_template": "pretrain",
    "flow_shift": 3.0,
    "diff_infer_steps": 50,
    "diff_guidance_scale": 5.0,
    "drop_think": False,
    "temperature": 0.6,
    "top_k": 1024,
    "top_p": 0.95,
}


def write_random_checkpoint(
    folder: Path,
    config: dict[str, Any] | None = None,
    seed: int = 0,
    num_shards: int = 2,
    generation: dict[str, Any] | None = None,
    num_ratios: int = NUM_RATIOS,
) -> None:
    """Write a checkpoint of random bfloat16 weights into `folder`; config.json comes last.

    So a folder with a config.json is a whole one. `generation` changes generation_config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    is_distilled = bool(config and config.get("cfg_distilled"))
    extra_ratios = tuple(f"<img_ratio_{i}>" for i in range(NUM_RATIOS, num_ratios))
    generation_config = {**GENERATION_CONFIG, **(generation or {})}
    is_instruct = generation_config["sequence_template"] == "instruct"
    tokenizer = _build_tokenizer(
        CONTROL_TOKENS
        + extra_ratios
        + (DISTILLED_TOKENS if is_distilled else ())
        + (EDITING_TOKENS if is_instruct else ())
    )
    tokenizer.save_pretrained(folder)
    fields = {**(config or TINY_CONFIG), "vocab_size": len(tokenizer)}
    _write_shards(folder, list_slots(build_skeleton(parse_config(fields))), seed, num_shards)
    _write_json(folder / "generation_config.json", generation_config)
    _write_json(folder / "config.json", fields)


def _write_shards(
    folder: Path, targets: dict[str, ParameterSlot], seed: int, num_shards: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    names = sorted(targets)
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        file_name = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        shard_names = names[shard::num_shards]  # scatters the tensors of a layer over shards
        tensors = {name: _random_tensor(name, targets[name], generator) for name in shard_names}
        save_file(tensors, folder / file_name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard_names, file_name)
    total = sum(2 * torch.Size(target.shape).numel() for target in targets.values())
    _write_json(folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _random_tensor(name: str, target: ParameterSlot, generator: torch.Generator) -> Tensor:
    if name.endswith("bias"):
        return torch.zeros(target.shape, dtype=torch.bfloat16)
    if len(target.shape) == 1:  # the weight of a norm
        return torch.ones(target.shape, dtype=torch.bfloat16)
    fan_in = torch.Size(target.shape[1:]).numel()
    scale = float(fan_in) ** -0.5
    weights: Tensor = torch.randn(target.shape, generator=generator) * scale
    return weights.to(torch.bfloat16)


def _build_tokenizer(control_tokens: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer without merges: every text, one token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in control_tokens])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<pad>",
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--middle", action="store_true", help="3.9 GB instead of a few MB")
    asked = parser.parse_args()
    if asked.middle:
        write_random_checkpoint(asked.folder, MIDDLE_CONFIG, num_shards=8)
    else:
        write_random_checkpoint(asked.folder)
