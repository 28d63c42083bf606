"""Prompts computed once: their keys and values, shared by every row and step that follows."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

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


def build_step_groups(
    transformer: HunyuanImage, rows: Sequence[ImageSequence]
) -> tuple[RowGroup, ...]:
    """Return the row groups of a denoising step, each distinct prompt computed once.

    Neighbouring rows with the same prompt form a group; rows of the same prompt that are not
    neighbours are separate groups over the same keys and values.
    """
    prefixes: dict[tuple[int, ...], Prefix] = {}
    groups: list[RowGroup] = []
    start = 0
    for ids, members in groupby(rows, key=lambda row: row.prefix_ids):
        same = list(members)
        if ids not in prefixes:
            prefixes[ids] = compute_prefix(transformer, ids)
        positions_S2 = grid_positions(same[0], same[0].image_stop)
        groups.append(
            RowGroup(
                rows=slice(start, start + len(same)),
                rope=_table(transformer, positions_S2[same[0].prefix_length :]),
                spans=list_step_spans(same[0]),
                past=prefixes[ids].layers,
            )
        )
        start += len(same)
    return tuple(groups)


def _table(transformer: HunyuanImage, positions_S2: Tensor) -> RotaryTable:
    config = transformer.config
    return build_rotary_table(positions_S2, config.head_dim, config.rope_theta).to(
        transformer.device
    )
