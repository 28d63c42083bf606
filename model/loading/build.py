"""From a checkpoint folder to a model on a device, strictly and in one pass over the files."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from model.config import ModelConfig, load_config
from model.errors import ConfigError
from model.loading.checkpoint import INDEX_NAME, check_names, check_shard, list_shards
from model.loading.device_map import map_layers
from model.loading.expert_offload import choose_offloaded, experts_of, offload_experts
from model.loading.options import LoadOptions, parameter_dtype
from model.loading.safetensors_file import SafetensorsFile, StoredTensor
from model.loading.shard_plan import check_divisible
from model.loading.tensor_reader import ReadBuffer, finalize_tensor, read_tensor
from model.loading.weight_map import ParameterSlot, list_slots
from model.mesh import SINGLE, Mesh
from model.quantization.modules import quantize_layers
from model.quantization.scheme import Scheme, resolve_scheme
from model.transformer import HunyuanImage

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]  # bytes done, bytes in all
NUM_READERS = 4


def build_skeleton(
    config: ModelConfig,
    *,
    has_vision: bool = False,
    mesh: Mesh = SINGLE,
    scheme: Scheme | None = None,
) -> HunyuanImage:
    """Return the model on the meta device: names and shapes of every tensor, no memory.

    With a scheme, the layers' large matrices are held rounded.

    Raises:
        ConfigError: the mesh does not divide the model.
    """
    check_divisible(config, mesh.tensor.size, mesh.tensor.expert_parallel)
    with init_empty_weights(include_buffers=True):
        transformer = HunyuanImage(config, has_vision=has_vision, mesh=mesh)
        if scheme is not None:
            quantize_layers(transformer, scheme)
        return transformer.eval().requires_grad_(requires_grad=False)


def load_model(
    folder: Path,
    options: LoadOptions | None = None,
    progress: Progress | None = None,
    mesh: Mesh = SINGLE,
) -> HunyuanImage:
    """Load the checkpoint in `folder`, or this rank's part of it: no other bytes are read.

    Memory peaks at the loaded parameters plus, where they are converted, a few tensors as stored on
    disk; where they are quantized on the way, a few float32 copies of those.

    Raises:
        ConfigError: config.json asks for another architecture, or options that do not fit it.
        CheckpointError: a tensor is missing, extra, misshapen or not finite, or a file is damaged.
    """
    options = options or LoadOptions()
    has_vision = "vision_model" not in options.skip
    scheme, is_stored = resolve_scheme(folder, options.quantization)
    transformer = build_skeleton(
        load_config(folder), has_vision=has_vision, mesh=mesh, scheme=scheme
    )
    targets = list_slots(transformer, scheme if is_stored else None)
    shards = list_shards(folder)
    check_names((name for names in shards.values() for name in names), targets, folder / INDEX_NAME)
    for part in options.skip:
        _drop(transformer, part)
    for shard, promised in shards.items():
        with SafetensorsFile(folder / shard) as file:
            check_shard(file, promised, targets)
    offloaded = choose_offloaded(transformer, options)
    if offloaded and options.offload == "disk" and scheme is not None and not is_stored:
        raise ConfigError(
            "worker.offload is 'disk', and worker.quantization would round the weights at every "
            "fetch; write them once with `hyimage quantize` and serve that folder"
        )
    _allocate(transformer, options, offloaded)
    paths = [folder / shard for shard in shards]
    _fill(transformer, paths, targets, progress)
    if offloaded:
        offload_experts(transformer, offloaded, paths, targets, options)
    return transformer


def _drop(transformer: nn.Module, part: str) -> None:
    parent, _, child = part.rpartition(".")
    setattr(transformer.get_submodule(parent), child, None)


def _allocate(transformer: HunyuanImage, options: LoadOptions, offloaded: Sequence[int]) -> None:
    """Give every parameter its memory; experts that stay on disk get none."""
    away = set(experts_of(transformer, offloaded).values())
    devices = map_layers(transformer, options)
    for module_name, module in transformer.named_modules():
        device, is_pinned = options.device, False
        if module_name.startswith("model.layers."):
            device = devices[int(module_name.split(".")[2])]
        if module in away:
            is_pinned = options.offload == "cpu" and options.device.startswith("cuda")
            device = "cpu" if options.offload == "cpu" else "meta"
        for name, parameter in module.named_parameters(recurse=False):
            dtype = parameter_dtype(f"{module_name}.{name}", parameter, options)
            memory = torch.empty(parameter.shape, dtype=dtype, device=device, pin_memory=is_pinned)
            setattr(module, name, nn.Parameter(memory, requires_grad=False))


def _fill(
    transformer: nn.Module,
    paths: list[Path],
    targets: dict[str, ParameterSlot],
    progress: Progress | None,
) -> None:
    parameters = {n: p for n, p in transformer.named_parameters() if not p.is_meta}
    wanted = {name: t for name, t in targets.items() if t.parameter in parameters}
    total = sum(parameter.nbytes for parameter in parameters.values())
    done = 0
    with ThreadPoolExecutor(NUM_READERS) as readers:
        for path in paths:
            with SafetensorsFile(path) as file:
                for stored, values in _read_ahead(readers, file, wanted, parameters):
                    target = wanted[stored.name]
                    done += finalize_tensor(file, stored, target, parameters, values)
                    if progress is not None:
                        progress(done, total)


def _read_ahead(
    readers: ThreadPoolExecutor,
    file: SafetensorsFile,
    wanted: Mapping[str, ParameterSlot],
    parameters: Mapping[str, Tensor],
) -> Iterator[tuple[StoredTensor, Tensor]]:
    """Yield a file's tensors as they have been read, in order, a few of them ahead.

    One reader waits for the disk while another one's memory is being mapped, which takes as long.
    """
    scratch = ReadBuffer()
    coming: deque[tuple[StoredTensor, Future[Tensor]]] = deque()
    try:
        for stored in (stored for stored in file.tensors if stored.name in wanted):
            target = wanted[stored.name]
            reading = readers.submit(read_tensor, file, stored, target, parameters, scratch)
            coming.append((stored, reading))
            if len(coming) > NUM_READERS:
                first, ready = coming.popleft()
                yield first, ready.result()
        while coming:
            first, ready = coming.popleft()
            yield first, ready.result()
    finally:  # no reader is left with a file that is closed
        wait([reading for _, reading in coming])
