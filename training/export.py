"""Export of a training run: a checkpoint folder in the official layout."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.loading.checkpoint import INDEX_NAME
from model.loading.weight_map import list_slots
from model.transformer import HunyuanImage
from pipeline.vocabulary import FILE_NAME
from training.architecture import FIELDS, build_config
from training.random_checkpoint import GENERATION_CONFIG
from training.state import load_state
from training.tokenizer import build_tokenizer
from training.transformer import STATE_NAME
from training.transformer_start import start_transformer
from training.vae import load_ema_vae
from training.vocabulary import build_vocabulary

NUM_SHARDS = 2
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
# Source: the official base checkpoint; other shifts have not been compared for this one yet.
GENERATION_FIELDS: dict[str, Any] = {
    **GENERATION_CONFIG,
    "flow_shift": 3.0,
    "diff_infer_steps": 30,
    "diff_guidance_scale": 5.0,
}


def build_trained(run: Path) -> HunyuanImage:
    """Return the model of a training run with averaged weights; the vision tower is random.

    Raises:
        RuntimeError: the run has no saved state yet.
    """
    state = load_state(run / STATE_NAME)
    if state is None:
        raise RuntimeError(f"{run / STATE_NAME} does not exist; train first")
    transformer = HunyuanImage(build_config())
    start_transformer(transformer)
    parameters = dict(transformer.named_parameters())
    with torch.no_grad():
        for name, averaged in state["ema"].items():
            parameters[name].copy_(averaged)
    transformer.vae.load_state_dict(load_ema_vae(run).state_dict())
    return transformer.eval().requires_grad_(requires_grad=False)


def export_checkpoint(run: Path, folder: Path) -> None:
    """Write the checkpoint of a training run into `folder`, replacing an older one as a whole."""
    transformer = build_trained(run)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    build_tokenizer(run / "tokenizer")
    for name in TOKENIZER_FILES:
        shutil.copyfile(run / "tokenizer" / name, partial / name)
    _write_shards(partial, transformer)
    _write_json(partial / "generation_config.json", GENERATION_FIELDS)
    _write_json(partial / "config.json", FIELDS)
    _write_json(partial / FILE_NAME, build_vocabulary().model_dump())
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _write_shards(folder: Path, transformer: HunyuanImage) -> None:
    tensors = dict(_tensors(transformer))
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(NUM_SHARDS):
        file_name = f"model-{shard + 1:05d}-of-{NUM_SHARDS:05d}.safetensors"
        shard_names = names[
            shard * len(names) // NUM_SHARDS : (shard + 1) * len(names) // NUM_SHARDS
        ]
        save_file(
            {n: tensors[n] for n in shard_names}, folder / file_name, metadata={"format": "pt"}
        )
        (folder / file_name).chmod(0o644)
        weight_map |= dict.fromkeys(shard_names, file_name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / INDEX_NAME, index)


def _tensors(transformer: HunyuanImage) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor under its checkpoint name: bfloat16, the router float32."""
    parameters = dict(transformer.named_parameters())
    for name, target in list_slots(transformer).items():
        dtype = torch.float32 if name.endswith("gate.wg.weight") else torch.bfloat16
        yield name, target.view(parameters).to(dtype).contiguous()


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
