"""Prompts computed once: their keys and values, shared by every row and step that follows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.attention import AttentionGroup, LayerKV
from model.rope import RotaryTable, build_rotary_table
from model.sequence import AttentionSpan, ImageSequence, grid_positions, step_spans
from model.transformer import HunyuanImage


@dataclass(frozen=True, slots=True)
class PromptKV:
    """Keys and values of one prompt, an entry a layer, and its last hidden states.

    Text never attends to the image, so they hold for every step and every image.
    """

    layers: tuple[LayerKV, ...]
    hidden_1SD: Tensor

    @property
    def length(self) -> int:
        return self.layers[0].k_BGSH.shape[2]

    def first(self, length: int) -> "PromptKV":
        """Return the keys and values of the first tokens alone, without hidden states."""
        layers = tuple(
            LayerKV(layer.k_BGSH[:, :, :length], layer.v_BGSH[:, :, :length])
            for layer in self.layers
        )
        return PromptKV(layers, self.hidden_1SD[:, :0])


class PromptKVCache:
    """The prompts that one task has needed so far.

    A prompt that begins like one of them goes on from there: the unconditional row after the
    system prompt, the image after the text that the model has written for it.
    """

    # Fewer tokens in common are not worth a detour from computing the prompt in one piece.
    MIN_SHARED = 16

    def __init__(self, transformer: HunyuanImage) -> None:
        self._transformer = transformer
        self._known: dict[tuple[int, ...], PromptKV] = {}
        self.num_computed = 0  # tokens that went through the layers

    def get(self, ids: Sequence[int]) -> PromptKV:
        """Return the keys and values of a prompt."""
        wanted = tuple(ids)
        if wanted not in self._known:
            past = self._longest_start(wanted)
            rest = wanted[past.length if past else 0 :]
            self._known[wanted] = prefill(self._transformer, rest, past)
            self.num_computed += len(rest)
        return self._known[wanted]

    def fork(self) -> "PromptKVCache":
        """Return a copy that goes its own way: what it learns, the other does not."""
        other = PromptKVCache(self._transformer)
        other._known = dict(self._known)
        return other

    def keep(self, ids: Sequence[int], prefix: PromptKV) -> None:
        """Remember what was computed elsewhere."""
        self._known[tuple(ids)] = prefix

    def _longest_start(self, ids: tuple[int, ...]) -> PromptKV | None:
        """Return what is known of the longest beginning of `ids`, at least one token short."""
        best, length = None, 0
        for known, prefix in self._known.items():
            shared = min(_shared_length(known, ids), len(ids) - 1)
            if shared > length:
                best, length = prefix, shared
        return best.first(length) if best is not None and length >= self.MIN_SHARED else None


def _shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    length = min(len(a), len(b))
    return next((i for i in range(length) if a[i] != b[i]), length)


def prefill(
    transformer: HunyuanImage, ids: Sequence[int], past: PromptKV | None = None
) -> PromptKV:
    """Run the layers over the ids of one prompt, or over those that follow a `past` one.

    The result holds the keys and values of all of them, and the hidden states of the new ones.
    """
    (prefix,) = prefill_batch(transformer, [ids], [past])
    return prefix


def prefill_batch(
    transformer: HunyuanImage, ids: Sequence[Sequence[int]], pasts: Sequence[PromptKV | None]
) -> list[PromptKV]:
    """Run the layers over the next ids of several texts, as many of each, as one batch.

    The texts may be of different length: each attends to its own past alone, without padding.
    """
    groups = [_text_group(transformer, row, len(ids[row]), past) for row, past in enumerate(pasts)]
    x_BSD = torch.cat([transformer.embed_ids(row) for row in ids])
    hidden_BSD = transformer.run_layers(x_BSD, groups)
    prompt_cache = []
    for row, (group, past) in enumerate(zip(groups, pasts, strict=True)):
        kept = group.kept or []
        if past is not None:
            kept = [
                LayerKV(*old.concat(new.k_BGSH, new.v_BGSH))
                for old, new in zip(past.layers, kept, strict=True)
            ]
        prompt_cache.append(PromptKV(tuple(kept), hidden_BSD[row : row + 1]))
    return prompt_cache


def _text_group(
    transformer: HunyuanImage, row: int, num_new: int, past: PromptKV | None
) -> AttentionGroup:
    start = past.length if past else 0
    positions_S2 = torch.arange(start, start + num_new).unsqueeze(1).expand(-1, 2)
    return AttentionGroup(
        rows=slice(row, row + 1),
        rope=_table(transformer, positions_S2),
        # A single token sees all there is; no mask is needed for that.
        spans=(AttentionSpan(0, num_new, is_causal=num_new > 1),),
        past=past.layers if past else (),
        kept=[],
    )


def build_attention_group(
    prompt_cache: PromptKVCache, transformer: HunyuanImage, row: ImageSequence
) -> AttentionGroup:
    """Return the group of one row of a denoising step."""
    positions_S2 = grid_positions(row, row.image_stop)
    return AttentionGroup(
        rows=slice(0, 1),
        rope=_table(transformer, positions_S2[row.prefix_length :]),
        spans=tuple(step_spans(row)),
        past=prompt_cache.get(row.prefix_ids).layers,
    )


def merge_groups(groups: Sequence[AttentionGroup]) -> tuple[AttentionGroup, ...]:
    """Lay groups of rows one below the other; neighbours over the same prompt and grid become one.

    Rows of the same prompt that are not neighbours stay separate groups over the same keys and
    values.
    """
    merged: list[AttentionGroup] = []
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
) -> tuple[AttentionGroup, ...]:
    """Return the row groups of a denoising step, each distinct prompt computed once."""
    prompt_cache = PromptKVCache(transformer)
    return merge_groups([build_attention_group(prompt_cache, transformer, row) for row in rows])


def _table(transformer: HunyuanImage, positions_S2: Tensor) -> RotaryTable:
    config = transformer.config
    return build_rotary_table(positions_S2, config.head_dim, config.rope_theta).to(
        transformer.device
    )
