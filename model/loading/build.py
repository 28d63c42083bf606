"""From a checkpoint folder to a model on a device, strictly and in one pass over the files."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from model.config import ModelConfig, load_config
from model.errors import CheckpointError
from model.loading.checkpoint import INDEX_NAME, check_names, check_shard, list_shards
from model.loading.names import Target, list_targets
from model.loading.safetensors_file import SafetensorsFile, StoredTensor
from model.loading.shard_plan import check_divisible
from model.mesh import ALONE, Mesh
from model.quantization.modules import round_layers
from model.quantization.scheme import (
    SCALE_SUFFIX,
    Scheme,
    quantize,
    scheme_of,
    scheme_of_dtype,
)
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
    quantization: str = "none"  # or a name of SCHEMES; a quantized folder needs none
    vae_dtype: torch.dtype = torch.float32
    skip: tuple[str, ...] = IMAGE_INPUT_PARTS


def build_skeleton(
    config: ModelConfig,
    *,
    has_vision: bool = False,
    mesh: Mesh = ALONE,
    scheme: Scheme | None = None,
) -> HunyuanImage:
    """Return the model on the meta device: names and shapes of every tensor, no memory.

    With a scheme, the layers' large matrices are held rounded.

    Raises:
        ConfigError: the mesh does not divide the model.
    """
    check_divisible(config, mesh.tensor.size)
    with init_empty_weights(include_buffers=True):
        transformer = HunyuanImage(config, has_vision=has_vision, mesh=mesh)
        if scheme is not None:
            round_layers(transformer, scheme)
        return transformer.eval().requires_grad_(requires_grad=False)


def load_model(
    folder: Path,
    options: LoadOptions | None = None,
    progress: Progress | None = None,
    mesh: Mesh = ALONE,
) -> HunyuanImage:
    """Load the checkpoint in `folder`, or this rank's part of it: no other bytes are read.

    Memory peaks at the loaded parameters plus one tensor as stored on disk; where it is quantized
    on the way, a few float32 copies of that tensor.

    Raises:
        ConfigError: config.json asks for another architecture, or options that do not fit it.
        CheckpointError: a tensor is missing, extra, misshapen or not finite, or a file is damaged.
    """
    options = options or LoadOptions()
    has_vision = "vision_model" not in options.skip
    scheme, is_stored = scheme_of(folder, options.quantization)
    transformer = build_skeleton(
        load_config(folder), has_vision=has_vision, mesh=mesh, scheme=scheme
    )
    targets = list_targets(transformer, scheme if is_stored else None)
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


def parameter_dtype(name: str, parameter: Tensor, options: LoadOptions) -> torch.dtype:
    """Return the dtype in which a parameter of the skeleton is held.

    The router stays float32 at any dtype: a rounded score can flip the choice of experts. Rounded
    matrices and their scales have dtypes of their own.
    """
    if name.endswith(SCALE_SUFFIX) or parameter.dtype != torch.float32:
        return parameter.dtype
    if name.endswith("mlp.gate.wg.weight"):
        return torch.float32
    return options.vae_dtype if name.startswith("vae.") else options.dtype


def _drop(transformer: nn.Module, part: str) -> None:
    parent, _, child = part.rpartition(".")
    setattr(transformer.get_submodule(parent), child, None)


def _allocate(transformer: nn.Module, options: LoadOptions) -> None:
    for module_name, module in transformer.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            dtype = parameter_dtype(f"{module_name}.{name}", parameter, options)
            memory = torch.empty_like(parameter, dtype=dtype, device=options.device)
            setattr(module, name, nn.Parameter(memory, requires_grad=False))


def _fill_one(
    file: SafetensorsFile,
    stored: StoredTensor,
    target: Target,
    parameters: Mapping[str, Tensor],
    scratch: Tensor,
) -> int:
    """Read a tensor to its place, rounding it where the model holds it rounded; return its bytes.

    Raises:
        CheckpointError: the file cannot be read, or the values are not finite.
    """
    view, scale_view = target.view(parameters), target.scale_view(parameters)
    is_rounded_here = scale_view is not None and target.dtype is None
    into = view
    if is_rounded_here:
        shape = stored.shape if target.part is None else target.part.shape(stored.shape)
        into = torch.empty(shape, dtype=stored.dtype, device=view.device)
    if target.part is None:
        file.read_into(stored, into, scratch)
    else:
        file.read_part_into(stored, target.part, into, scratch)
    if not _is_finite(into):
        raise CheckpointError(
            f"{file.path}: tensor {stored.name} holds values that are not finite as "
            f"{into.dtype}; the shard is damaged, or the dtype is too narrow for it"
        )
    if not is_rounded_here:
        return view.nbytes
    assert scale_view is not None
    packed, scale = quantize(into, scheme_of_dtype(view.dtype))
    view.copy_(packed)
    scale_view.copy_(scale)
    return view.nbytes + scale_view.nbytes


def _is_finite(values: Tensor) -> bool:
    if values.dtype == torch.float8_e4m3fn:  # knows nan alone, as 0x7f and 0xff
        return not bool(((values.view(torch.uint8) & 0x7F) == 0x7F).any())
    return bool(values.isfinite().all())


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
                if scratch.numel() < stored.num_bytes:
                    scratch = torch.empty(stored.num_bytes, dtype=torch.uint8)
                done += _fill_one(file, stored, wanted[stored.name], parameters, scratch)
                if progress is not None:
                    progress(done, total)
