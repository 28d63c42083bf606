"""`hyimage quantize`: writes the smaller checkpoint, and tells what rounding cost each layer."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from model.errors import ConfigError
from model.loading.quantize_folder import MatrixError, quantize_folder
from model.quantization.scheme import SCHEMES

_PLACE = re.compile(r"model\.layers\.(\d+)\.(.*)\.weight")
_EXPERT = re.compile(r"experts\.\d+")
_HEADINGS = {
    "self_attn.qkv_proj": "qkv",
    "self_attn.o_proj": "out",
    "mlp.shared_mlp.gate_and_up_proj": "shared up",
    "mlp.shared_mlp.down_proj": "shared down",
    "mlp.experts.gate_and_up_proj": "experts up",
    "mlp.experts.down_proj": "experts down",
}


def quantize_checkpoint(source: Path, target: Path, name: str) -> None:
    """Write `target` with a progress bar, then print the error of every layer.

    Raises:
        ModelError: the scheme is unknown, or one of the folders is not usable.
    """
    if name not in SCHEMES:
        raise ConfigError(f"--scheme {name!r} is unknown; choose one of {', '.join(SCHEMES)}")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"rounding to {name}", total=None)
        errors = quantize_folder(
            source,
            target,
            SCHEMES[name],
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    console = Console(highlight=False)
    console.print(_table(errors))
    before, after = _num_bytes(source), _num_bytes(target)
    console.print(
        f"{target}: {after / 1e9:.2f} GB instead of {before / 1e9:.2f}. Serve it with\n"
        f"hyimage serve --checkpoint {target}"
    )


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _table(errors: Sequence[MatrixError]) -> Table:
    """Return a row per layer: root-mean-square error over root-mean-square weight, in percent."""
    cells: dict[tuple[int, str], list[MatrixError]] = defaultdict(list)
    for error in errors:
        place = _PLACE.fullmatch(error.name)
        assert place is not None, error.name
        cells[int(place[1]), _EXPERT.sub("experts", place[2])].append(error)
    kinds = [kind for kind in _HEADINGS if any(kind == own for _, own in cells)]
    table = Table(
        "layer",
        *map(_HEADINGS.__getitem__, kinds),
        title="error of the rounded weights, % of their size",
    )
    for layer in sorted({layer for layer, _ in cells}):
        table.add_row(str(layer), *(_percent(cells[layer, kind]) for kind in kinds))
    table.add_row("all", *(_percent([e for (_, k), es in cells.items() if k == kind for e in es])
                           for kind in kinds))  # fmt: skip
    return table


def _percent(errors: Sequence[MatrixError]) -> str:
    whole = MatrixError(
        "", sum(error.squares for error in errors), sum(error.lost_squares for error in errors)
    )
    return f"{100 * whole.relative:.3f}"
