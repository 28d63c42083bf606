"""Which layers' experts stay on the device, and where the others are fetched from."""

import weakref
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.errors import ConfigError
from model.loading.expert_offloader import NUM_STAGING_BUFFERS, ExpertOffloader, HostSource, Source
from model.loading.options import LoadOptions, parameter_dtype
from model.loading.safetensors_file import SafetensorsFile, StoredTensor
from model.loading.tensor_reader import ReadBuffer, load_tensor
from model.loading.weight_map import ParameterSlot
from model.moe import Experts
from model.transformer import HunyuanImage


def choose_offloaded(transformer: HunyuanImage, options: LoadOptions) -> tuple[int, ...]:
    """Return the layers whose experts are fetched when they are needed, so that weights fit.

    Layers that stay are spread evenly among them: while one of those computes, the next one's
    experts arrive. The first layer stays if any does: step caches run it by itself.

    Raises:
        ConfigError: not even the smallest share fits.
    """
    if options.weights_bytes is None:
        return ()
    sizes = {name: _num_bytes(name, p, options) for name, p in transformer.named_parameters()}
    layers = range(len(transformer.model.layers))
    of_layer = [
        sum(size for name, size in sizes.items() if name.startswith(expert_prefix(layer)))
        for layer in layers
    ]
    room = options.weights_bytes - (sum(sizes.values()) - sum(of_layer))
    if sum(of_layer) <= room:
        return ()
    room -= NUM_STAGING_BUFFERS * max(of_layer)
    if room < 0:
        raise ConfigError(
            f"weights may take {options.weights_bytes / 1e9:.2f} GB of {options.device}, and need "
            f"{(options.weights_bytes - room) / 1e9:.2f} even if all experts are fetched as they "
            "are used; raise worker.device_memory_gb, or quantize the checkpoint"
        )
    num_resident = min(len(layers) - 1, room // max(of_layer))
    resident = {index * len(layers) // num_resident for index in range(num_resident)}
    return tuple(layer for layer in layers if layer not in resident)


def offload_experts(
    transformer: HunyuanImage,
    offloaded: Sequence[int],
    paths: Sequence[Path],
    targets: Mapping[str, ParameterSlot],
    options: LoadOptions,
) -> ExpertOffloader:
    """Let some layers' experts be fetched from where the options say, from now on."""
    experts = experts_of(transformer, offloaded)
    source: Source
    if options.offload == "disk":
        source = DiskSource(paths, targets, offloaded)
    else:
        source = HostSource(experts)
    return ExpertOffloader(experts, source, torch.device(options.device))


def experts_of(transformer: HunyuanImage, layers: Sequence[int]) -> dict[int, Experts]:
    """Return the routed experts of some layers."""
    experts: dict[int, Experts] = {}
    for layer in layers:
        module = transformer.get_submodule(expert_prefix(layer).removesuffix("."))
        assert isinstance(module, Experts)
        experts[layer] = module
    return experts


def expert_prefix(layer: int) -> str:
    """Return how the names of a layer's stacked expert parameters begin."""
    return f"model.layers.{layer}.mlp.experts."


class DiskSource:
    """Experts in the checkpoint's own files, read by plain reads; the system caches what it can."""

    def __init__(
        self, paths: Sequence[Path], targets: Mapping[str, ParameterSlot], layers: Sequence[int]
    ) -> None:
        """Open the files and note where each expert of the layers lies."""
        self._files = [SafetensorsFile(path) for path in paths]
        weakref.finalize(self, _close, self._files)
        self._places: dict[
            tuple[int, int], list[tuple[SafetensorsFile, StoredTensor, ParameterSlot]]
        ]
        self._places = defaultdict(list)
        for file, stored in self._list_stored():
            target = targets[stored.name]
            for layer in layers:
                if target.expert is not None and target.parameter.startswith(expert_prefix(layer)):
                    self._places[layer, target.expert].append((file, stored, target))
        self._scratch = ReadBuffer()

    def fill(self, layer: int, tensors: Mapping[str, Tensor], experts: Sequence[int]) -> None:
        parameters = {expert_prefix(layer) + name: tensor for name, tensor in tensors.items()}
        for expert in experts:
            for file, stored, target in self._places[layer, expert]:
                load_tensor(file, stored, target, parameters, self._scratch)

    def _list_stored(self) -> Iterator[tuple[SafetensorsFile, StoredTensor]]:
        for file in self._files:
            for stored in file.tensors:
                yield file, stored


def _close(files: list[SafetensorsFile]) -> None:
    for file in files:
        file.close()


def _num_bytes(name: str, parameter: Tensor, options: LoadOptions) -> int:
    return parameter.numel() * parameter_dtype(name, parameter, options).itemsize
