"""From a checkpoint folder to a model on a device, strictly and in one pass over the files."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import nn

from model.config import ModelConfig, load_config
from model.errors import CheckpointError
from model.loading.checkpoint import INDEX_NAME, check_names, check_shard, list_shards
from model.loading.names import Target, list_targets
from model.loading.safetensors_file import SafetensorsFile
from model.loading.shard_plan import check_divisible
from model.mesh import ALONE, Mesh
from model.transformer import HunyuanImage

log = logging.getLogger(__name__)

# Parts of the checkpoint that text-to-image never runs; their files are still checked.
IMAGE_INPUT_PARTS = ("vision_model", "vision_aligner", "vae.encoder")

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadOptions:
    """How to hold a checkpoint in memory."""

    device: str = "cpu"
    dtype: torch.dtype = torch.bfloat16
    vae_dtype: torch.dtype = torch.float32
    skip: tuple[str, ...] = IMAGE_INPUT_PARTS


def build_skeleton(
    config: ModelConfig, *, has_vision: bool = False, mesh: Mesh = ALONE
) -> HunyuanImage:
    """Return the model on the meta device: names and shapes of every tensor, no memory.

    Raises:
        ConfigError: the mesh does not divide the model.
    """
    check_divisible(config, mesh.tensor.size)
    with init_empty_weights(include_buffers=True):
        transformer = HunyuanImage(config, has_vision=has_vision, mesh=mesh)
        return transformer.eval().requires_grad_(requires_grad=False)


def load_model(
    folder: Path,
    options: LoadOptions | None = None,
    progress: Progress | None = None,
    mesh: Mesh = ALONE,
) -> HunyuanImage:
    """Load the checkpoint in `folder`, or this rank's part of it: no other bytes are read.

    Memory peaks at the loaded parameters plus one tensor as stored on disk.

    Raises:
        ConfigError: config.json asks for another architecture.
        CheckpointError: a tensor is missing, extra, misshapen or not finite, or a file is damaged.
    """
    options = options or LoadOptions()
    has_vision = "vision_model" not in options.skip
    transformer = build_skeleton(load_config(folder), has_vision=has_vision, mesh=mesh)
    targets = list_targets(transformer)
    shards = list_shards(folder)
    check_names((name for names in shards.values() for name in names), targets, folder / INDEX_NAME)
    for part in options.skip:
        _drop(transformer, part)
    _allocate(transformer, options)
    for shard, promised in shards.items():
        with SafetensorsFile(folder / shard) as file:
            check_shard(file, promised, targets)
    _fill(transformer, [folder / shard for shard in shards], targets, progress)
    return transformer


def parameter_dtype(name: str, options: LoadOptions) -> torch.dtype:
    """Return the dtype in which a parameter is held.

    The router stays float32 at any dtype: a rounded score can flip the choice of experts.
    """
    if name.endswith("mlp.gate.wg.weight"):
        return torch.float32
    return options.vae_dtype if name.startswith("vae.") else options.dtype


def _drop(transformer: nn.Module, part: str) -> None:
    parent, _, child = part.rpartition(".")
    setattr(transformer.get_submodule(parent), child, None)


def _allocate(transformer: nn.Module, options: LoadOptions) -> None:
    for module_name, module in transformer.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            dtype = parameter_dtype(f"{module_name}.{name}", options)
            memory = torch.empty_like(parameter, dtype=dtype, device=options.device)
            setattr(module, name, nn.Parameter(memory, requires_grad=False))


def _fill(
    transformer: nn.Module, paths: list[Path], targets: dict[str, Target], progress: Progress | None
) -> None:
    parameters = dict(transformer.named_parameters())
    wanted = {name: t for name, t in targets.items() if t.parameter in parameters}
    total = sum(parameter.nbytes for parameter in parameters.values())
    done = 0
    scratch = torch.empty(0, dtype=torch.uint8)
    for path in paths:
        with SafetensorsFile(path) as file:
            for stored in file.tensors:
                if stored.name not in wanted:
                    continue
                target = wanted[stored.name]
                view = target.view(parameters)
                if scratch.numel() < stored.num_bytes:
                    scratch = torch.empty(stored.num_bytes, dtype=torch.uint8)
                if target.part is None:
                    file.read_into(stored, view, scratch)
                else:
                    file.read_part_into(stored, target.part, view, scratch)
                if not view.isfinite().all():
                    raise CheckpointError(
                        f"{path}: tensor {stored.name} holds values that are not finite as "
                        f"{view.dtype}; the shard is damaged, or the dtype is too narrow for it"
                    )
                done += view.nbytes
                if progress is not None:
                    progress(done, total)
