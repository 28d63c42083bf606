"""Checkpoint layout: the slot of every stored tensor, in this project's folders and in others'.

Published quantized checkpoints are mapped to it. ModelOpt's float8 weights and scales are held as
they are stored, a scale of a matrix once for every row. What else is quantized there is dequantized
while it is read, and quantized again where `worker.quantization` or the format says so.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from model.errors import CheckpointError
from model.loading.safetensors_file import SafetensorsFile, StoredTensor
from model.loading.weight_map import ParameterSlot, list_slots
from model.quantization.published import (
    NF4_STATE,
    dequantize_float8,
    dequantize_int8,
    dequantize_nf4,
)
from model.quantization.scheme import SCALE_SUFFIX, StoredScheme
from model.transformer import HunyuanImage

log = logging.getLogger(__name__)

# Scales of activations and of a key/value cache: both are quantized with scales of their own here.
_UNUSED = (".input_scale", ".k_scale", ".v_scale")

Place = tuple[SafetensorsFile, StoredTensor]
ReadStored = Callable[[SafetensorsFile, StoredTensor], Tensor]


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """A weight that is dequantized while it is read, and where the tensors beside it lie."""

    places: Mapping[str, Place]  # by what follows the module's or the weight's name

    def dequantize(self, packed: Tensor, read: ReadStored) -> Tensor:
        """Return the matrix in float32, on the device of the packed values.

        Raises:
            CheckpointError: the tensors beside it do not fit it.
        """
        beside = {
            key: read(*place)
            for key, place in self.places.items()
            if key not in (NF4_STATE, "weight_format")
        }
        try:
            if "weight_scale" in beside:
                return dequantize_float8(packed, beside["weight_scale"])
            if "SCB" in beside:
                self._check_row_format()
                return dequantize_int8(packed, beside["SCB"])
            file, state = self.places[NF4_STATE]
            return dequantize_nf4(packed, beside, file.read(state))
        except (ValueError, KeyError, TypeError, RuntimeError) as e:
            file, stored = next(iter(self.places.values()))
            raise CheckpointError(
                f"{file.path}: {stored.name} does not fit its weight ({e}); download it again"
            ) from None

    def packed_slot(self, slot: ParameterSlot) -> ParameterSlot:
        """Return a weight's slot with the shape and dtype in which it is stored."""
        if "weight_scale" in self.places:
            return replace(slot, dtype=torch.float8_e4m3fn)
        if "SCB" in self.places:
            return replace(slot, dtype=torch.int8)
        return replace(slot, shape=(-(-prod(slot.shape) // 2), 1), dtype=torch.uint8)

    def _check_row_format(self) -> None:
        if "weight_format" in self.places:
            file, stored = self.places["weight_format"]
            if file.read(stored).any():
                raise ValueError("only rows as bitsandbytes 0.45 and later store them are read")


@dataclass(slots=True)
class Layout:
    """The tensors of a checkpoint: what each fills, and how those of published formats are read."""

    slots: dict[str, ParameterSlot]
    matrices: dict[str, StoredMatrix] = field(default_factory=dict)
    unread: frozenset[str] = frozenset()  # read with a matrix, or not at all
    rounded: frozenset[str] = frozenset()  # quantized while they are loaded
    files: ExitStack = field(default_factory=ExitStack)  # those that matrices are read from
    is_published: bool = False

    def close(self) -> None:
        """Close the files; no matrix can be read any more."""
        self.files.close()

    @property
    def converts_experts(self) -> bool:
        """Return whether routed experts are quantized or dequantized while they are read."""
        return any(self.slots[name].expert is not None for name in (*self.matrices, *self.rounded))

    def open(self, path: Path) -> SafetensorsFile:
        """Open a file whose tensors are those that have a slot.

        Raises:
            CheckpointError: the file is missing, truncated, or its header is damaged.
        """
        file = SafetensorsFile(path)
        if self.is_published:
            file.tensors = [
                self._present(stored) for stored in file.tensors if stored.name not in self.unread
            ]
        return file

    def _present(self, stored: StoredTensor) -> StoredTensor:
        """Return a scale in the shape of its slot: one for a matrix is read for each row."""
        slot = self.slots.get(stored.name)
        if slot is None or not stored.name.endswith(SCALE_SUFFIX):
            return stored
        is_fitting = prod(stored.shape) in (1, prod(slot.shape))
        return replace(stored, shape=slot.shape) if is_fitting else stored

    def checked_slots(self) -> dict[str, ParameterSlot]:
        """Return the slots with the shapes and dtypes that the tensors of the files must have."""
        packed = {n: matrix.packed_slot(self.slots[n]) for n, matrix in self.matrices.items()}
        return {**self.slots, **packed}


def find_layout(
    folder: Path, shards: Mapping[str, Sequence[str]], transformer: HunyuanImage, held: StoredScheme
) -> Layout:
    """Return the layout of a folder whose index promises these tensors.

    Raises:
        CheckpointError: a file of a published checkpoint cannot be read.
        ConfigError: ranks would have to share a scale.
    """
    plain = list_slots(transformer)
    parameters = dict(transformer.named_parameters())
    quantized = list_slots(transformer, held.scheme) if held.is_on_disk else {}
    if held.published is None:
        if held.is_on_disk:
            return Layout(quantized)
        return Layout(plain, rounded=_rounded(plain, parameters))
    names = {name for promised in shards.values() for name in promised}
    layout = Layout({}, is_published=True)
    beside: dict[str, dict[str, str]] = {}
    for name, slot in plain.items():
        scale = name + SCALE_SUFFIX
        if scale in names and scale in quantized:
            layout.slots |= {name: quantized[name], scale: quantized[scale]}
            continue
        layout.slots[name] = slot
        if found := _tensors_beside(name, names):
            beside[name] = found
    layout.rounded = _rounded(layout.slots, parameters)
    layout.unread = frozenset(name for name in names if name.endswith(_UNUSED)).union(
        *(found.values() for found in beside.values())
    )
    if beside:
        with ExitStack() as stack:
            files = [stack.enter_context(SafetensorsFile(folder / shard)) for shard in shards]
            layout.matrices = _place_matrices(files, beside)
            layout.files = stack.pop_all()
    log.info(
        "%s holds %s: %d matrices are dequantized while they are read%s",
        folder,
        held.published,
        len(layout.matrices),
        f" and held as {held.scheme.name}" if held.scheme and not held.is_on_disk else "",
    )
    return layout


def _place_matrices(
    files: Sequence[SafetensorsFile], beside: Mapping[str, Mapping[str, str]]
) -> dict[str, StoredMatrix]:
    """Return the matrices to dequantize, given the names of the tensors beside each."""
    places = {stored.name: (file, stored) for file in files for stored in file.tensors}
    missing = sorted({name for found in beside.values() for name in found.values()} - places.keys())
    if missing:
        folder = files[0].path.parent
        raise CheckpointError(
            f"{folder}: tensor {missing[0]} is missing, though the index lists it; "
            "download its shard again"
        )
    return {
        name: StoredMatrix({key: places[other] for key, other in found.items()})
        for name, found in beside.items()
    }


def _rounded(
    slots: Mapping[str, ParameterSlot], parameters: Mapping[str, Tensor]
) -> frozenset[str]:
    """Return the tensors that are quantized in memory and not in their files."""
    return frozenset(
        name
        for name, slot in slots.items()
        if slot.parameter is not None
        and slot.parameter + SCALE_SUFFIX in parameters
        and name + SCALE_SUFFIX not in slots
    )


def _tensors_beside(name: str, names: set[str]) -> dict[str, str]:
    """Return the tensors that a weight is dequantized with, by what follows its name."""
    module = name.removesuffix("weight")
    for keys, stem in (
        (("weight_scale",), module),
        (("SCB", "weight_format"), module),
        ((NF4_STATE, "absmax", "quant_map", "nested_absmax", "nested_quant_map"), f"{name}."),
    ):
        if stem + keys[0] in names:
            return {key: stem + key for key in keys if stem + key in names}
    return {}
