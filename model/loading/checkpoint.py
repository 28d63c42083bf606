"""Checkpoint folders: the index, the shard files, and strict checks of their tensors."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from model.config_file import read_json
from model.errors import CheckpointError
from model.loading.safetensors_file import SafetensorsFile, StoredTensor
from model.loading.weight_map import ParameterSlot

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


def list_shards(folder: Path) -> dict[str, list[str]]:
    """Return shard file name -> the tensor names that the index promises in it.

    Raises:
        CheckpointError: there is no index and no single file, or the index is unreadable.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder that holds config.json")
    index = folder / INDEX_NAME
    if not index.exists() and (folder / SINGLE_NAME).exists():
        with SafetensorsFile(folder / SINGLE_NAME) as file:
            return {SINGLE_NAME: [stored.name for stored in file.tensors]}
    weight_map = read_json(index, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) for shard in weight_map.values()
    ):
        raise CheckpointError(f"{index} has no weight_map of file names; download it again")
    shards: dict[str, list[str]] = {}
    for tensor, shard in weight_map.items():
        if Path(shard).name != shard:
            raise CheckpointError(f"{index} points outside the checkpoint folder: {shard}")
        shards.setdefault(shard, []).append(tensor)
    return dict(sorted(shards.items()))


def check_names(names: Iterable[str], slots: Mapping[str, ParameterSlot], source: Path) -> None:
    """Check that a checkpoint lists exactly the tensors of the model.

    Raises:
        CheckpointError: tensors are missing or unknown; the first few are named.
    """
    present = set(names)
    missing = [name for name in slots if name not in present]
    extra = sorted(present - slots.keys())
    if missing or extra:
        parts = [
            f"{_some(group)} {label}"
            for group, label in ((missing, "missing"), (extra, "unknown to this model"))
            if group
        ]
        raise CheckpointError(
            f"{source} does not fit config.json: {' and '.join(parts)} "
            f"({len(present)} tensors listed, {len(slots)} wanted)"
        )


def check_shard(
    file: SafetensorsFile, promised: Iterable[str], slots: Mapping[str, ParameterSlot]
) -> None:
    """Check that a shard holds the promised tensors in the model's shapes, and nothing else.

    Raises:
        CheckpointError: naming the file and the first tensor at fault.
    """
    stored_by_name = {stored.name: stored for stored in file.tensors}
    promised = set(promised)
    for name in sorted(promised - stored_by_name.keys()):
        raise CheckpointError(f"{file.path}: tensor {name} is missing, though the index lists it")
    for name in sorted(stored_by_name.keys() - promised):
        raise CheckpointError(f"{file.path}: tensor {name} is not in the index for this shard")
    for name, stored in stored_by_name.items():
        _check_shape(file.path, stored, slots[name])


def _check_shape(path: Path, stored: StoredTensor, slot: ParameterSlot) -> None:
    if stored.shape != slot.shape:
        raise CheckpointError(
            f"{path}: tensor {stored.name} has shape {list(stored.shape)}, "
            f"but config.json makes it {list(slot.shape)}"
        )
    is_right = stored.dtype.is_floating_point and stored.dtype.itemsize > 1
    if slot.dtype is not None:
        is_right = stored.dtype == slot.dtype
    if not is_right:
        raise CheckpointError(
            f"{path}: tensor {stored.name} has dtype {stored.dtype}, "
            f"not {slot.dtype or 'a float of 16 bits or more'}"
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
