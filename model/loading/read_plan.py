"""Read plan: the pieces in which a stored tensor, or a rank's part of one, is read from its file.

Pieces bound the memory that is read into. A read call costs some microseconds, as much as the copy
of tens of kilobytes: short parts of rows are cut out of whole rows in memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from model.loading.shard_plan import ShardSlice

MAX_PIECE_BYTES = 64 << 20
SHORT_RUN_BYTES = 16 << 10  # shorter parts of rows are read with the rest of their rows


@dataclass(frozen=True, slots=True)
class Piece:
    """Runs of stored elements that are read one behind another, and where they belong.

    `runs` are (offset, count) of stored elements. What was read has `rows` rows, of which columns
    `first` to `last` fill the target's elements from `start` on, in the target's order.
    """

    runs: tuple[tuple[int, int], ...]
    rows: int
    first: int
    last: int
    start: int

    @property
    def num_read(self) -> int:
        """Return how many elements are read."""
        return sum(count for _, count in self.runs)

    @property
    def num_kept(self) -> int:
        """Return how many elements of the target are filled."""
        return self.rows * (self.last - self.first)

    @property
    def is_whole(self) -> bool:
        """Return whether everything that is read is kept."""
        return self.num_read == self.num_kept


def plan_pieces(
    shape: Sequence[int],
    shard: ShardSlice | None,
    itemsize: int,
    max_bytes: int = MAX_PIECE_BYTES,
) -> Iterator[Piece]:
    """Yield the pieces of a tensor, or of the rows or columns of it that a rank holds."""
    if shard is not None and shard.dim == 1:
        yield from _pieces_of_columns(shape, shard, itemsize, max_bytes)
        return
    longest = max(1, max_bytes // itemsize)
    runs = [(0, prod(shape))] if shard is None else shard.row_runs(shape)
    start = 0
    for offset, count in runs:
        for done in range(0, count, longest):
            part = min(longest, count - done)
            yield Piece(((offset + done, part),), 1, 0, part, start)
            start += part


def _pieces_of_columns(
    shape: Sequence[int], shard: ShardSlice, itemsize: int, max_bytes: int
) -> Iterator[Piece]:
    rows, columns = shape
    (first,) = shard.starts
    is_short = shard.length * itemsize < SHORT_RUN_BYTES
    read_per_row = columns if is_short else shard.length
    rows_at_once = max(1, max_bytes // (read_per_row * itemsize))
    for row in range(0, rows, rows_at_once):
        count, start = min(rows_at_once, rows - row), row * shard.length
        if is_short:
            runs = ((row * columns, count * columns),)
            yield Piece(runs, count, first, first + shard.length, start)
        else:
            parts = tuple((r * columns + first, shard.length) for r in range(row, row + count))
            yield Piece(parts, count, 0, shard.length, start)
