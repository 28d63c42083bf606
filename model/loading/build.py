"""Model loading: from a checkpoint folder to parameters on devices, in one pass over the files."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from model.config import ModelConfig
from model.config_file import load_config
from model.errors import ConfigError
from model.loading.checkpoint import INDEX_NAME, check_names, check_shard, list_shards
from model.loading.device_map import map_layers
from model.loading.expert_offload import choose_offloaded, experts_of, offload_experts
from model.loading.layout import Layout, find_layout
from model.loading.options import LoadOptions, parameter_dtype
from model.loading.safetensors_file import SafetensorsFile, StoredTensor
from model.loading.shard_plan import check_divisible
from model.loading.tensor_reader import (
    FiniteCheck,
    ReadBuffer,
    ReaderStreams,
    install,
    memory_for,
    read_tensor,
    read_whole,
)
from model.loading.weight_map import ParameterSlot
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

    With a scheme, the layers' large matrices are quantized.

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
    """Load the checkpoint in `folder`, or this rank's shard of it: no other bytes are read.

    Memory peaks at the loaded parameters plus, where they are converted, a few tensors as stored on
    disk; where they are quantized on the way, a few float32 copies of those.

    Raises:
        ConfigError: config.json selects another architecture, or the options do not fit it.
        CheckpointError: a tensor is missing, extra, misshapen or not finite, or a file is damaged.
    """
    options = options or LoadOptions()
    has_vision = "vision_model" not in options.skip
    stored = resolve_scheme(folder, options.quantization)
    scheme = stored.scheme
    transformer = build_skeleton(
        load_config(folder), has_vision=has_vision, mesh=mesh, scheme=scheme
    )
    shards = list_shards(folder)
    with closing(find_layout(folder, shards, transformer, stored)) as layout:
        _check_files(folder, shards, layout)
        for part in options.skip:
            _drop(transformer, part)
        offloaded = choose_offloaded(transformer, options)
        if offloaded and options.offload == "disk" and layout.converts_experts:
            raise ConfigError(
                "worker.offload is 'disk', and the experts would be quantized or dequantized at "
                "every read; write them once with `hyimage quantize` from the original checkpoint "
                "and serve that folder, or set worker.offload to 'cpu'"
            )
        _allocate(transformer, options, offloaded)
        paths = [folder / shard for shard in shards]
        _fill(transformer, paths, layout, progress)
        if offloaded:
            offload_experts(transformer, offloaded, paths, layout, options)
    return transformer


def _check_files(folder: Path, shards: Mapping[str, Sequence[str]], layout: Layout) -> None:
    """Check names and shapes of all tensors before any is read."""
    read = {
        shard: [name for name in names if name not in layout.unread]
        for shard, names in shards.items()
    }
    names = (name for promised in read.values() for name in promised)
    check_names(names, layout.slots, folder / INDEX_NAME)
    slots = layout.checked_slots()
    for shard, promised in read.items():
        with layout.open(folder / shard) as file:
            check_shard(file, promised, slots)


def _drop(transformer: nn.Module, part: str) -> None:
    parent, _, child = part.rpartition(".")
    setattr(transformer.get_submodule(parent), child, None)


def _allocate(transformer: HunyuanImage, options: LoadOptions, offloaded: Sequence[int]) -> None:
    """Give every parameter its memory; experts that stay on disk get none."""
    offloaded_experts = set(experts_of(transformer, offloaded).values())
    devices = map_layers(transformer, options)
    for module_name, module in transformer.named_modules():
        device, is_pinned = options.device, False
        if module_name.startswith("model.layers."):
            device = devices[int(module_name.split(".")[2])]
        if module in offloaded_experts:
            is_pinned = options.offload == "cpu" and options.device.startswith("cuda")
            device = "cpu" if options.offload == "cpu" else "meta"
        for name, parameter in module.named_parameters(recurse=False):
            dtype = parameter_dtype(f"{module_name}.{name}", parameter, options)
            memory = torch.empty(parameter.shape, dtype=dtype, device=device, pin_memory=is_pinned)
            setattr(module, name, nn.Parameter(memory, requires_grad=False))


def _fill(
    transformer: nn.Module,
    paths: Sequence[Path],
    layout: Layout,
    progress: Progress | None,
) -> None:
    """Read every tensor that has memory on this rank."""
    parameters = {n: p for n, p in transformer.named_parameters() if not p.is_meta}
    wanted = {name: slot for name, slot in layout.slots.items() if slot.parameter in parameters}
    total = sum(parameter.nbytes for parameter in parameters.values())
    done = 0
    with ThreadPoolExecutor(NUM_READERS) as pool:
        readers = _Readers(pool, layout, wanted, parameters)
        for path in paths:
            for num_bytes in readers.fill_from(path):
                done += num_bytes
                if progress is not None:
                    progress(done, total)


@dataclass(frozen=True, slots=True)
class _Reading:
    """Values that a reader has read, or queued the copies of on its stream."""

    values: Tensor
    stream: torch.cuda.Stream | None


@dataclass(slots=True)
class _Readers:
    """Threads that fill parameters from files, some tensors ahead of what is quantized."""

    pool: ThreadPoolExecutor
    layout: Layout
    slots: Mapping[str, ParameterSlot]
    parameters: Mapping[str, Tensor]
    buffer: ReadBuffer = field(default_factory=ReadBuffer)
    streams: ReaderStreams = field(default_factory=ReaderStreams)

    def fill_from(self, path: Path) -> Iterator[int]:
        """Fill the parameters that one file holds; yield the bytes of each tensor."""
        check = FiniteCheck()
        with self.layout.open(path) as file:
            for stored, reading in self._read_ahead(file):
                values = reading.values
                if reading.stream is not None:
                    torch.cuda.current_stream(values.device).wait_stream(reading.stream)
                check.add(file, stored, values)
                yield install(self.slots[stored.name], self.parameters, values)
            check.finish()

    def _read_ahead(self, file: SafetensorsFile) -> Iterator[tuple[StoredTensor, _Reading]]:
        """Yield a file's tensors in order, with a few more being read ahead.

        One reader waits for the disk while another one's memory is being mapped, which takes as
        long.
        """
        pending: deque[tuple[StoredTensor, Future[_Reading]]] = deque()
        try:
            for stored in (stored for stored in file.tensors if stored.name in self.slots):
                pending.append((stored, self.pool.submit(self._read, file, stored)))
                if len(pending) > NUM_READERS:
                    first, reading = pending.popleft()
                    yield first, reading.result()
            while pending:
                first, reading = pending.popleft()
                yield first, reading.result()
        finally:  # no reader may be left with a closed file
            wait([reading for _, reading in pending])

    def _read(self, file: SafetensorsFile, stored: StoredTensor) -> _Reading:
        slot = self.slots[stored.name]
        # Memory of the default stream, on which it is quantized and given back.
        matrix = self.layout.matrices.get(stored.name)
        dtype = stored.dtype if matrix is None else torch.bfloat16
        values = memory_for(dtype, slot, self.parameters)
        with self.streams.use(values.device) as stream:
            if matrix is None:
                read_tensor(file, stored, slot.shard, values, self.buffer)
            else:

                def read(file: SafetensorsFile, stored: StoredTensor) -> Tensor:
                    return read_whole(file, stored, values.device, self.buffer)

                whole = matrix.dequantize(read(file, stored), read)
                values.copy_(whole if slot.shard is None else slot.shard.of(whole))
        return _Reading(values, stream)
