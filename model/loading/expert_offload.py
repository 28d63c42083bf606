"""Expert offload: the choice of offloaded layers, and experts read from the checkpoint's files."""

import weakref
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.errors import ConfigError
from model.loading.expert_offloader import NUM_STAGING_BUFFERS, ExpertOffloader, HostSource, Source
from model.loading.layout import Layout
from model.loading.options import LoadOptions, parameter_dtype
from model.loading.safetensors_file import SafetensorsFile, StoredTensor
from model.loading.tensor_reader import FiniteCheck, ReadBuffer, read_tensor
from model.loading.weight_map import ParameterSlot
from model.moe import Experts
from model.transformer import HunyuanImage


def choose_offloaded(transformer: HunyuanImage, options: LoadOptions) -> tuple[int, ...]:
    """Return the layers whose experts are offloaded so that the weights fit.

    Resident layers are spread evenly among them: while one of those computes, the next one's
    experts are copied. The first layer stays if any does: step caches run it by itself.

    Raises:
        ConfigError: not even the smallest share fits.
    """
    if options.weights_bytes is None:
        return ()
    sizes = {name: _num_bytes(name, p, options) for name, p in transformer.named_parameters()}
    layers = range(len(transformer.layers))
    layer_bytes = [
        sum(size for name, size in sizes.items() if name.startswith(expert_prefix(layer)))
        for layer in layers
    ]
    room = options.weights_bytes - (sum(sizes.values()) - sum(layer_bytes))
    if sum(layer_bytes) <= room:
        return ()
    room -= NUM_STAGING_BUFFERS * max(layer_bytes)
    if room < 0:
        raise ConfigError(
            f"weights may take {options.weights_bytes / 1e9:.2f} GB of {options.device}, and need "
            f"{(options.weights_bytes - room) / 1e9:.2f} even if all experts are offloaded; "
            "raise worker.device_memory_gb, or quantize the checkpoint"
        )
    num_resident = min(len(layers) - 1, room // max(layer_bytes))
    resident = {index * len(layers) // num_resident for index in range(num_resident)}
    return tuple(layer for layer in layers if layer not in resident)


def offload_experts(
    transformer: HunyuanImage,
    offloaded: Sequence[int],
    paths: Sequence[Path],
    layout: Layout,
    options: LoadOptions,
) -> ExpertOffloader:
    """Set the transformer's `expert_offload` for some layers, and return it."""
    experts = experts_of(transformer, offloaded)
    source: Source
    if options.offload == "disk":
        source = DiskSource(paths, layout, offloaded)
    else:
        source = HostSource(experts)
    offloader = ExpertOffloader(experts, source, torch.device(options.device))
    transformer.expert_offload = offloader
    return offloader


def experts_of(transformer: HunyuanImage, layers: Sequence[int]) -> dict[int, Experts]:
    """Return the routed experts of some layers."""
    return {layer: transformer.layers[layer].mlp.experts for layer in layers}


def expert_prefix(layer: int) -> str:
    """Return the prefix of the names of a layer's stacked expert parameters."""
    return f"model.layers.{layer}.mlp.experts."


class DiskSource:
    """Experts in the checkpoint's files, read by plain reads; the page cache holds what it can."""

    def __init__(self, paths: Sequence[Path], layout: Layout, layers: Sequence[int]) -> None:
        """Open the files and list the stored tensors of each expert of the layers."""
        self._files = [layout.open(path) for path in paths]
        weakref.finalize(self, _close, self._files)
        self._stored: dict[
            tuple[int, int], list[tuple[SafetensorsFile, StoredTensor, ParameterSlot]]
        ]
        self._stored = defaultdict(list)
        layer_of_prefix = {expert_prefix(layer): layer for layer in layers}
        for file in self._files:
            for stored in file.tensors:
                slot = layout.slots[stored.name]
                if slot.parameter is None or slot.expert is None:
                    continue
                layer = layer_of_prefix.get(slot.parameter[: slot.parameter.rindex(".") + 1])
                if layer is not None:
                    self._stored[layer, slot.expert].append((file, stored, slot))
        self._buffer = ReadBuffer()
        self._checked: set[tuple[int, int]] = set()  # layer, expert

    def fill(self, layer: int, tensors: Mapping[str, Tensor], experts: Sequence[int]) -> None:
        parameters = {expert_prefix(layer) + name: tensor for name, tensor in tensors.items()}
        check = FiniteCheck()
        for expert in experts:
            is_checked = (layer, expert) in self._checked
            for file, stored, slot in self._stored[layer, expert]:
                values = slot.view(parameters)
                read_tensor(file, stored, slot.shard, values, self._buffer)
                if not is_checked:  # the files do not change while they are served
                    check.add(file, stored, values)
        check.finish()
        self._checked.update((layer, expert) for expert in experts)


def _close(files: list[SafetensorsFile]) -> None:
    for file in files:
        file.close()


def _num_bytes(name: str, parameter: Tensor, options: LoadOptions) -> int:
    return parameter.numel() * parameter_dtype(name, parameter, options).itemsize
