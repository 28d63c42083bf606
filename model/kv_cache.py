"""KV cache of prompts: prefill once, then share keys and values with every row, step and image.

A prompt is prefilled in one pass over its tokens (`prefill`), or from the longest cached prompt
that begins like it (`PromptKVCache`: prefix caching). Denoising steps attend to the cache and add
nothing to it; text generation appends a token at a time (`prefill_batch`).

Input images are a part of the prompt. Their tokens have the same ids whatever the image, so the
cache compares the identities of the images too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.attention import AttentionGroup, LayerKV
from model.image_input import EmbeddedImage
from model.rope import RotaryTable, build_rotary_table
from model.sequence import (
    ImageSequence,
    grid_positions,
    prompt_positions,
    prompt_spans,
    step_spans,
)
from model.transformer import HunyuanImage


@dataclass(frozen=True, slots=True)
class PromptKV:
    """Keys and values of one prompt, an entry a layer, and its last hidden states.

    Text never attends to the image, so they are valid for every step and every image.
    """

    layers: tuple[LayerKV, ...]
    hidden_1SD: Tensor

    @property
    def length(self) -> int:
        return self.layers[0].length

    def first(self, length: int) -> "PromptKV":
        """Return the keys and values of the first tokens alone, without hidden states."""
        layers = tuple(layer.first(length) for layer in self.layers)
        return PromptKV(layers, self.hidden_1SD[:, :0])


class PromptKVCache:
    """Prefix cache of one task: the prompts prefilled so far.

    A prompt that begins like one of them is prefilled from there: the unconditional row after the
    system prompt and the input images, the image after the text that the model has written for it.
    What they have in common is in memory once. All prompts have the cache's input images, at the
    same places.
    """

    # With fewer tokens in common the prompt is prefilled in one pass.
    MIN_SHARED = 16

    def __init__(self, transformer: HunyuanImage, images: Sequence[EmbeddedImage] = ()) -> None:
        self._transformer = transformer
        self.images = tuple(images)
        self._prompts: dict[tuple[int | str, ...], PromptKV] = {}
        self._tables: dict[tuple[int, int, int, int], RotaryTable] = {}
        self.num_computed = 0  # tokens that went through the layers

    def get_or_compute(self, ids: Sequence[int]) -> PromptKV:
        """Return the keys and values of a prompt, from the cache or by prefilling it."""
        wanted = self._key(ids)
        if wanted not in self._prompts:
            past = self._longest_prefix(wanted)
            rest = ids[past.length if past else 0 :]
            self._prompts[wanted] = prefill(self._transformer, rest, past, self.images)
            self.num_computed += len(rest)
        return self._prompts[wanted]

    def fork(self, images: Sequence[EmbeddedImage] | None = None) -> "PromptKVCache":
        """Return a copy, for other input images if given; additions to one are not in the other."""
        other = PromptKVCache(self._transformer, self.images if images is None else images)
        other._prompts = dict(self._prompts)
        other._tables = dict(self._tables)
        return other

    def clear(self) -> None:
        """Let go of the prompts' memory; runs that use them keep their own."""
        self._prompts.clear()

    def rotary_table(self, row: ImageSequence) -> RotaryTable:
        """Return the table of a row's denoising steps, built once for all rows of one layout.

        Those are both rows of an image without a negative prompt, and all images of a task.
        """
        layout = (row.prefix_length, row.num_step_tokens, row.grid_height, row.grid_width)
        if layout not in self._tables:
            positions_S2 = grid_positions(row, row.image_stop)[row.prefix_length :]
            self._tables[layout] = _table(self._transformer, positions_S2)
        return self._tables[layout]

    def put(self, ids: Sequence[int], prompt: PromptKV) -> None:
        """Add a prompt that was computed elsewhere."""
        self._prompts[self._key(ids)] = prompt

    def _key(self, ids: Sequence[int]) -> tuple[int | str, ...]:
        """Return the ids, with each input image's identity in the place of its tokens."""
        key: list[int | str] = list(ids)
        for image in self.images:
            block = image.block
            assert block.stop < len(key), "a prompt ends within an input image"
            key[block.start : block.stop] = [image.identity] * (block.stop - block.start)
        return tuple(key)

    def _longest_prefix(self, key: tuple[int | str, ...]) -> PromptKV | None:
        """Return the longest cached prefix of a key, at least one token shorter than it is."""
        best, length = None, 0
        for cached_key, prompt in self._prompts.items():
            shared = min(_shared_length(cached_key, key), len(key) - 1)
            if shared > length:
                best, length = prompt, shared
        return best.first(length) if best is not None and length >= self.MIN_SHARED else None


def _shared_length(a: Sequence[int | str], b: Sequence[int | str]) -> int:
    length = min(len(a), len(b))
    return next((i for i in range(length) if a[i] != b[i]), length)


def prefill(
    transformer: HunyuanImage,
    ids: Sequence[int],
    past: PromptKV | None = None,
    images: Sequence[EmbeddedImage] = (),
) -> PromptKV:
    """Return the KV of one prompt, or of a `past` prompt followed by the ids.

    It holds the keys and values of all tokens, and the hidden states of the new ones. `images` are
    the input images of the whole prompt; those that lie in the past are there already.
    """
    (prompt,) = prefill_batch(transformer, [ids], [past], images)
    return prompt


def prefill_batch(
    transformer: HunyuanImage,
    ids: Sequence[Sequence[int]],
    pasts: Sequence[PromptKV | None],
    images: Sequence[EmbeddedImage] = (),
) -> list[PromptKV]:
    """Return the KV of several texts after their next ids, as many of each, run as one batch.

    The texts may be of different length: each attends to its own past alone, without padding.
    `images` are input images that stand in all of them.
    """
    starts = [past.length if past else 0 for past in pasts]
    groups = [
        _text_group(transformer, row, range(start, start + len(ids[row])), pasts[row], images)
        for row, start in enumerate(starts)
    ]
    rows = [transformer.embed_ids(row) for row in ids]
    for x_1SD, start in zip(rows, starts, strict=True):
        for image in images:
            image.place(x_1SD, start)
    x_BSD = torch.cat(rows)
    new_kv: list[list[LayerKV]] = [[] for _ in groups]
    hidden_BSD = transformer.run_layers(x_BSD, groups, new_kv=new_kv)
    prompts = []
    for row, (layers, past) in enumerate(zip(new_kv, pasts, strict=True)):
        if past is not None:
            layers = [
                old.append(new.k_BGSH, new.v_BGSH)
                for old, new in zip(past.layers, layers, strict=True)
            ]
        prompts.append(PromptKV(tuple(layers), hidden_BSD[row : row + 1]))
    return prompts


def _text_group(
    transformer: HunyuanImage,
    row: int,
    new: range,
    past: PromptKV | None,
    images: Sequence[EmbeddedImage],
) -> AttentionGroup:
    """Return the attention group of a prompt's new positions."""
    blocks = [image.block for image in images]
    return AttentionGroup(
        rows=slice(row, row + 1),
        rope=_table(transformer, prompt_positions(blocks, new.start, new.stop)),
        spans=prompt_spans(blocks, new.start, new.stop),
        past_kv=past.layers if past else (),
    )


def build_attention_group(
    prompt_cache: PromptKVCache, transformer: HunyuanImage, row: ImageSequence
) -> AttentionGroup:
    """Return the attention group of one row of a denoising step; its prompt is prefilled."""
    return AttentionGroup(
        rows=slice(0, 1),
        rope=prompt_cache.rotary_table(row),
        spans=tuple(step_spans(row)),
        past_kv=prompt_cache.get_or_compute(row.prefix_ids).layers,
    )


def merge_groups(groups: Sequence[AttentionGroup]) -> tuple[AttentionGroup, ...]:
    """Return the groups of a batch in which the given groups' rows follow one another.

    Neighbours with the same prompt and grid become one group; rows of the same prompt that are not
    neighbours stay separate groups over the same keys and values.
    """
    merged: list[AttentionGroup] = []
    for group in groups:
        start = merged[-1].rows.stop if merged else 0
        stop = start + group.rows.stop - group.rows.start
        last = merged[-1] if merged else None
        if last is not None and last.past_kv is group.past_kv and last.spans == group.spans:
            merged[-1] = replace(last, rows=slice(last.rows.start, stop))
        else:
            merged.append(replace(group, rows=slice(start, stop)))
    return tuple(merged)


def build_step_groups(
    transformer: HunyuanImage, rows: Sequence[ImageSequence]
) -> tuple[AttentionGroup, ...]:
    """Return the attention groups of a denoising step; each distinct prompt is prefilled once."""
    prompt_cache = PromptKVCache(transformer)
    return merge_groups([build_attention_group(prompt_cache, transformer, row) for row in rows])


def _table(transformer: HunyuanImage, positions_S2: Tensor) -> RotaryTable:
    config = transformer.config
    return build_rotary_table(positions_S2, config.head_dim, config.rope_theta).to(
        transformer.device
    )
