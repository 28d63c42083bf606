"""A quantized copy of a checkpoint, with the error of every layer's weights."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.loading.quantize_folder import MatrixError, quantize_folder
from model.quantization.scheme import SCHEMES
from tools.progress import Report, ignore, megabytes

_PLACE = re.compile(r"model\.layers\.(\d+)\.(.*)\.weight")
_EXPERT = re.compile(r"experts\.\d+")
_KINDS = {
    "self_attn.qkv_proj": "qkv",
    "self_attn.o_proj": "out",
    "mlp.shared_mlp.gate_and_up_proj": "shared up",
    "mlp.shared_mlp.down_proj": "shared down",
    "mlp.experts.gate_and_up_proj": "experts up",
    "mlp.experts.down_proj": "experts down",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedCheckpoint:
    """Sizes of both folders' weights in bytes, and relative errors by kind of matrix.

    `errors` holds (layer, root-mean-square error over root-mean-square weight by kind); the layer
    None stands for all of them.
    """

    source_bytes: int
    target_bytes: int
    kinds: tuple[str, ...]
    errors: tuple[tuple[int | None, dict[str, float]], ...]


def quantize_checkpoint(
    source: Path,
    target: Path,
    scheme: str,
    report: Report = ignore,
    device: str = "cpu",
    threads: int | None = None,
) -> QuantizedCheckpoint:
    """Write the checkpoint `source` with quantized weights to the new folder `target`.

    Matrices are quantized on `device`, by so many threads side by side; None: all cores.

    Raises:
        ModelError: one of the folders is not usable.
    """
    progress = megabytes(report, f"quantizing to {scheme}")
    errors = quantize_folder(
        source, target, SCHEMES[scheme], progress, device=device, threads=threads
    )
    kinds, rows = _by_layer(errors)
    return QuantizedCheckpoint(
        source_bytes=_num_bytes(source),
        target_bytes=_num_bytes(target),
        kinds=kinds,
        errors=rows,
    )


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _by_layer(
    errors: Sequence[MatrixError],
) -> tuple[tuple[str, ...], tuple[tuple[int | None, dict[str, float]], ...]]:
    """Return the kinds of matrix that occur, and a row per layer and one for all."""
    cells: dict[tuple[int | None, str], list[MatrixError]] = defaultdict(list)
    for error in errors:
        place = _PLACE.fullmatch(error.name)
        assert place is not None, error.name
        kind = _KINDS[_EXPERT.sub("experts", place[2])]
        cells[int(place[1]), kind].append(error)
        cells[None, kind].append(error)
    kinds = tuple(kind for kind in _KINDS.values() if (None, kind) in cells)
    layers: list[int | None] = [*sorted({layer for layer, _ in cells if layer is not None}), None]
    return kinds, tuple(
        (layer, {kind: _relative(cells[layer, kind]) for kind in kinds if (layer, kind) in cells})
        for layer in layers
    )


def _relative(errors: Sequence[MatrixError]) -> float:
    squares = sum(error.squares for error in errors)
    return MatrixError("", squares, sum(error.lost_squares for error in errors)).relative
