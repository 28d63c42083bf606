"""Sequence layout: token ids, positions and attention spans of text and image.

A sequence is `prefix <timestep> <img> x h*w tail`. Text is causal; `<timestep>` and all tokens
before it never attend to the image; image tokens attend to everything up to the image's end. So
the prefix is prefilled once, and a denoising step runs `[<timestep>, <img> x h*w]` alone.
Distilled checkpoints have `<guidance>` and `<timestep_r>` after `<timestep>`, causal like it.

The prefix may hold blocks of input images. Inside a block, from its first latent token to its last
vision token, all attend to all; it lies on two grids, that of the latent and that of the patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from model.config import ModelConfig
from model.errors import PromptTooLongError
from model.image_block import ImageBlock
from model.resolution import Size
from model.template import Prompt, Section, Template, place_blocks
from model.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class AttentionSpan:
    """Neighbouring queries [start, stop) with one visibility rule.

    Causal: each attends to the keys up to itself. Otherwise: all attend to every key before `stop`.
    """

    start: int
    stop: int
    is_causal: bool


@dataclass(frozen=True, slots=True)
class ImageSequence:
    """One row: the ids of the whole sequence, and the positions of its image and input images."""

    ids: tuple[int, ...]
    prefix_length: int
    grid_height: int
    grid_width: int
    num_step_tokens: int = 1
    blocks: tuple[ImageBlock, ...] = ()

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        return self.ids[: self.prefix_length]

    @property
    def num_image_tokens(self) -> int:
        return self.grid_height * self.grid_width

    @property
    def image_start(self) -> int:
        return self.prefix_length + self.num_step_tokens

    @property
    def image_stop(self) -> int:
        return self.image_start + self.num_image_tokens

    @property
    def step_indices(self) -> range:
        """Return the positions in `ids` that a denoising step runs."""
        return range(self.prefix_length, self.image_stop)


def build_image_sequence(
    sections: Sequence[Section],
    tail: Sequence[int],
    tokenizer: Tokenizer,
    grid: tuple[int, int],
    step_tokens: Sequence[str],
) -> ImageSequence:
    """Return one row: the sections, then an image of `grid` = (height, width) tokens."""
    prefix = tuple(chain.from_iterable(section.ids for section in sections))
    before = tuple(map(tokenizer.control_id, step_tokens))
    image = tokenizer.control_id("<img>")
    height, width = grid
    return ImageSequence(
        ids=(*prefix, *before, *(image,) * (height * width), *tail),
        prefix_length=len(prefix),
        grid_height=height,
        grid_width=width,
        num_step_tokens=len(before),
        blocks=place_blocks(sections),
    )


def build_guidance_rows(
    template: Template,
    tokenizer: Tokenizer,
    prompt: Prompt,
    negative: Prompt | None,
    size: Size,
    config: ModelConfig,
) -> tuple[ImageSequence, ImageSequence]:
    """Return the conditional and the unconditional row of one image.

    Without a negative prompt the unconditional row has `<cfg>` for every token of the user's text;
    with one it is that prompt's own conditional row, whose length may differ.

    Raises:
        PromptTooLongError: a row needs more positions than the model has.
    """
    sections = template.image_head(prompt, size.index)
    other = (
        template.unconditional(sections)
        if negative is None
        else template.image_head(negative, size.index)
    )
    stride, max_positions = config.pixels_per_token, config.max_positions
    grid = (size.height_px // stride, size.width_px // stride)
    tail = template.image_tail()
    rows = [
        build_image_sequence(row, tail, tokenizer, grid, config.step_tokens)
        for row in (sections, other)
    ]
    for name, row in zip(("prompt", "negative prompt"), rows, strict=True):
        if len(row.ids) > max_positions:
            raise PromptTooLongError(
                f"the {name} and the image need {len(row.ids)} positions, but the model has "
                f"{max_positions}; shorten the {name} by {len(row.ids) - max_positions} tokens"
            )
    return rows[0], rows[1]


def sequence_spans(row: ImageSequence) -> tuple[AttentionSpan, ...]:
    """Return the spans of the whole sequence, in order."""
    causal_ends = range(row.image_stop, len(row.ids))
    return (
        *prompt_spans(row.blocks, 0, row.prefix_length),
        *(
            AttentionSpan(i, i + 1, is_causal=False)
            for i in range(row.prefix_length, row.image_start)
        ),
        AttentionSpan(row.image_start, row.image_stop, is_causal=False),
        *(AttentionSpan(i, i + 1, is_causal=False) for i in causal_ends),
    )


def prompt_spans(blocks: Sequence[ImageBlock], start: int, stop: int) -> tuple[AttentionSpan, ...]:
    """Return the spans of a prompt's tokens [start, stop), counted from `start`.

    Text is causal; within the block of an input image every token attends to the whole block.
    """
    spans: list[AttentionSpan] = []

    def add(first: int, last: int, *, is_causal: bool) -> None:
        if last > first:  # a single token sees every key before it, which needs no mask
            is_masked = is_causal and last - first > 1
            spans.append(AttentionSpan(first - start, last - start, is_causal=is_masked))

    end = start
    for block in blocks:
        if start <= block.start < stop:
            assert block.stop <= stop, "a prompt ends within an input image"
            add(end, block.start, is_causal=True)
            add(block.start, block.stop, is_causal=False)
            end = block.stop
    add(end, stop, is_causal=True)
    return tuple(spans)


def step_spans(row: ImageSequence) -> tuple[AttentionSpan, ...]:
    """Return the spans of a denoising step: `<timestep>` attends to itself, the image to all."""
    before = row.num_step_tokens
    return (
        *(AttentionSpan(i, i + 1, is_causal=False) for i in range(before)),
        AttentionSpan(before, before + row.num_image_tokens, is_causal=False),
    )


def visibility_mask(spans: Sequence[AttentionSpan], length: int) -> Tensor:
    """Return the bool mask [length, length] of the spans; True = may attend.

    For verification: the model itself never builds it.
    """
    mask_SS = torch.zeros(length, length, dtype=torch.bool)
    for span in spans:
        mask_SS[span.start : span.stop, : span.stop] = True
        if span.is_causal:
            mask_SS[span.start : span.stop].tril_(span.start)
    return mask_SS


def grid_positions(row: ImageSequence, length: int) -> Tensor:
    """Return the (y, x) position of each of the first `length` tokens, int64 [length, 2].

    Text lies on the diagonal. An image is a grid centred on the diagonal stretch that its
    tokens would occupy as text; what follows continues behind that stretch.

    Source: "2D RoPE", HunyuanImage 3.0 technical report (arXiv 2509.23951), measured in the
    recordings of the reference.
    """
    positions_S2 = prompt_positions(row.blocks, 0, length)
    cells = _centred_cells(row.image_start, row.grid_height, row.grid_width)
    stop = min(row.image_stop, length)
    positions_S2[row.image_start : stop] = cells[: max(stop - row.image_start, 0)]
    return positions_S2


def prompt_positions(blocks: Sequence[ImageBlock], start: int, stop: int) -> Tensor:
    """Return the (y, x) positions of a prompt's tokens [start, stop), int64 [stop - start, 2].

    Slots of the vision tower that no patch fills lie on the diagonal, like text.
    """
    positions_S2 = torch.arange(start, stop).unsqueeze(1).repeat(1, 2)
    for block in blocks:
        if not start <= block.start < stop:
            continue
        grid = block.grid
        for first, height, width in (
            (block.start, grid.height, grid.width),
            (block.separator + 1, grid.patches_down, grid.patches_across),
        ):
            at = first - start
            positions_S2[at : at + height * width] = _centred_cells(first, height, width)
    return positions_S2


def _centred_cells(start: int, height: int, width: int) -> Tensor:
    """Return the positions of a grid whose first token stands at `start`, row by row."""
    top = (2 * start + height * width - height) // 2
    left = (2 * start + height * width - width) // 2
    return torch.cartesian_prod(
        torch.arange(top, top + height), torch.arange(left, left + width)
    ).view(-1, 2)
