from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.attention import attend_span
from model.kv_cache import build_step_groups, prefill
from model.sequence import (
    AttentionSpan,
    ImageSequence,
    grid_positions,
    sequence_spans,
    visibility_mask,
)
from pipeline.load import Pipeline
from tools.verify.full_sequence import trace_full_sequence


def make_row(prefix: Sequence[int], height: int, width: int, num_tail: int = 1) -> ImageSequence:
    ids = (*prefix, 1, *(2,) * (height * width), *(3,) * num_tail)
    return ImageSequence(ids, len(prefix), height, width)


ROWS = st.builds(
    make_row,
    st.lists(st.integers(4, 9), min_size=1, max_size=9),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 3),
)


@given(row=ROWS)
def test_spans_mean_causal_text_and_an_image_that_sees_itself_whole(row: ImageSequence) -> None:
    mask = visibility_mask(sequence_spans(row), len(row.ids))
    for query in range(len(row.ids)):
        for key in range(len(row.ids)):
            in_image = all(row.image_start <= i < row.image_stop for i in (query, key))
            assert mask[query, key] == (key <= query or in_image)


@given(row=ROWS)
def test_positions_of_an_image_are_a_grid_and_of_text_the_diagonal(row: ImageSequence) -> None:
    positions = grid_positions(row, len(row.ids)).tolist()
    inside = positions[row.image_start : row.image_stop]
    for i, (y, x) in enumerate(positions):
        if not row.image_start <= i < row.image_stop:
            assert (y, x) == (i, i)
    top, left = inside[0]
    assert inside == [
        [top + r, left + c] for r in range(row.grid_height) for c in range(row.grid_width)
    ]


@settings(deadline=None)
@given(
    past=st.integers(0, 5),
    new=st.integers(1, 6),
    is_causal=st.booleans(),
    kv_heads=st.integers(1, 2),
)
def test_a_span_attends_as_the_dense_mask_says(
    past: int, new: int, is_causal: bool, kv_heads: int
) -> None:
    generator = torch.Generator().manual_seed(past * 7 + new)
    q = torch.randn(2, kv_heads * 3, new, 8, generator=generator)
    k, v = torch.randn(2, 2, kv_heads, past + new, 8, generator=generator)
    mask = torch.ones(new, past + new, dtype=torch.bool)
    if is_causal:
        mask = mask.tril(past)
    expected = F.scaled_dot_product_attention(
        q, k.repeat_interleave(3, dim=1), v.repeat_interleave(3, dim=1), attn_mask=mask
    )
    ours = attend_span(q, k, v, AttentionSpan(0, new, is_causal), past)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.fixture
def rows(golden_pipeline: Pipeline) -> list[ImageSequence]:
    """Two prompts of different length, one of them twice."""
    short, long = range(10, 15), range(20, 43)
    return [make_row(ids, 4, 6) for ids in (short, short, long)]


def embed(pipeline: Pipeline, num_rows: int) -> Tensor:
    latent = torch.randn(num_rows, 8, 4, 6, generator=torch.Generator().manual_seed(3))
    return pipeline.transformer.embed_step(latent, torch.full((num_rows,), 700.0))


@torch.inference_mode()
def test_a_step_behind_a_cached_prompt_equals_the_whole_sequence(
    golden_pipeline: Pipeline, rows: list[ImageSequence]
) -> None:
    transformer = golden_pipeline.transformer
    x = embed(golden_pipeline, 3)
    step = transformer.run_layers(x, build_step_groups(transformer, rows))
    for i, row in enumerate(rows):
        whole = trace_full_sequence(transformer, [row], x[i : i + 1])["backbone_out_step0"]
        # Two orders of summation through 4 layers; the recordings allow 1e-3.
        torch.testing.assert_close(
            step[i], whole[0, row.prefix_length : row.image_stop], atol=1e-4, rtol=1e-4
        )


@torch.inference_mode()
def test_a_row_is_the_same_alone_and_in_a_batch(
    golden_pipeline: Pipeline, rows: list[ImageSequence]
) -> None:
    transformer = golden_pipeline.transformer
    x = embed(golden_pipeline, 3)
    together = transformer.run_layers(x, build_step_groups(transformer, rows))
    for i, row in enumerate(rows):
        alone = transformer.run_layers(x[i : i + 1], build_step_groups(transformer, [row]))
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_rows_with_one_prompt_share_its_keys_and_values(
    golden_pipeline: Pipeline, rows: list[ImageSequence]
) -> None:
    groups = build_step_groups(golden_pipeline.transformer, [rows[0], rows[2], rows[1]])
    assert [group.rows for group in groups] == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert groups[0].past_kv is groups[2].past_kv
    recomputed = prefill(golden_pipeline.transformer, rows[0].prefix_ids)
    for ours, again in zip(groups[0].past_kv, recomputed.layers, strict=True):
        assert torch.equal(ours.k_BGSH, again.k_BGSH)
        assert torch.equal(ours.v_BGSH, again.v_BGSH)
