"""Prompts computed once: their keys and values, shared by every row and step that follows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.attention import KeysValues, RowGroup
from model.rope import RotaryTable, build_rotary_table
from model.sequence import ImageSequence, Span, grid_positions, list_step_spans
from model.transformer import HunyuanImage


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values of one prompt, an entry a layer, and its last hidden states.

    Text never attends to the picture, so they hold for every step and every picture.
    """

    layers: tuple[KeysValues, ...]
    hidden_1SD: Tensor

    @property
    def length(self) -> int:
        return self.layers[0].k_BGSH.shape[2]


def compute_prefix(
    transformer: HunyuanImage, ids: Sequence[int], past: Prefix | None = None
) -> Prefix:
    """Run the layers over the ids of one prompt, or over those that follow a `past` one.

    The result holds the keys and values of all of them, and the hidden states of the new ones.
    """
    start = past.length if past else 0
    positions_S2 = torch.arange(start, start + len(ids)).unsqueeze(1).expand(-1, 2)
    kept: list[KeysValues] = []
    group = RowGroup(
        rows=slice(0, 1),
        rope=_table(transformer, positions_S2),
        # A single token sees all there is; no mask is needed for that.
        spans=(Span(0, len(ids), is_causal=len(ids) > 1),),
        past=past.layers if past else (),
        kept=kept,
    )
    hidden_1SD = transformer.run_layers(transformer.embed_ids(ids), [group])
    if past:
        kept = [
            KeysValues(*old.followed_by(new.k_BGSH, new.v_BGSH))
            for old, new in zip(past.layers, kept, strict=True)
        ]
    return Prefix(tuple(kept), hidden_1SD)


def build_row_group(
    transformer: HunyuanImage, row: ImageSequence, prefixes: dict[tuple[int, ...], Prefix]
) -> RowGroup:
    """Return the group of one row of a denoising step.

    `prefixes` holds the prompts computed so far; a prompt that is not among them is computed and
    put there.
    """
    ids = row.prefix_ids
    if ids not in prefixes:
        prefixes[ids] = compute_prefix(transformer, ids)
    positions_S2 = grid_positions(row, row.image_stop)
    return RowGroup(
        rows=slice(0, 1),
        rope=_table(transformer, positions_S2[row.prefix_length :]),
        spans=tuple(list_step_spans(row)),
        past=prefixes[ids].layers,
    )


def merge_groups(groups: Sequence[RowGroup]) -> tuple[RowGroup, ...]:
    """Lay groups of rows one below the other; neighbours over the same prompt and grid become one.

    Rows of the same prompt that are not neighbours stay separate groups over the same keys and
    values.
    """
    merged: list[RowGroup] = []
    for group in groups:
        start = merged[-1].rows.stop if merged else 0
        stop = start + group.rows.stop - group.rows.start
        last = merged[-1] if merged else None
        if last is not None and last.past is group.past and last.spans == group.spans:
            merged[-1] = replace(last, rows=slice(last.rows.start, stop))
        else:
            merged.append(replace(group, rows=slice(start, stop)))
    return tuple(merged)


def build_step_groups(
    transformer: HunyuanImage, rows: Sequence[ImageSequence]
) -> tuple[RowGroup, ...]:
    """Return the row groups of a denoising step, each distinct prompt computed once."""
    prefixes: dict[tuple[int, ...], Prefix] = {}
    return merge_groups([build_row_group(transformer, row, prefixes) for row in rows])


def _table(transformer: HunyuanImage, positions_S2: Tensor) -> RotaryTable:
    config = transformer.config
    return build_rotary_table(positions_S2, config.head_dim, config.rope_theta).to(
        transformer.device
    )
