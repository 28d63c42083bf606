"""The KV cache of prompts: prefix caching, and the memory it holds."""

from dataclasses import replace

import torch
from torch import Tensor

from model.attention import LayerKV
from model.kv_cache import PromptKVCache, prefill
from model.rope import build_rotary_table
from model.sequence import ImageSequence, grid_positions
from pipeline.load import Pipeline


def joined(layer: LayerKV) -> tuple[Tensor, Tensor]:
    """Return all keys and values of a layer."""
    return layer.concat(layer.k_BGSH[:, :, :0], layer.v_BGSH[:, :, :0])


def test_a_prompt_that_begins_like_a_cached_one_is_prefilled_from_there(
    tiny_pipeline: Pipeline,
) -> None:
    transformer = tiny_pipeline.transformer
    prompt_cache = PromptKVCache(transformer)
    with torch.inference_mode():
        prompt_cache.get_or_compute(list(range(40)))
        assert prompt_cache.num_computed == 40
        longer = prompt_cache.get_or_compute([*range(40), 7, 8])
        assert prompt_cache.num_computed == 42
        forked = prompt_cache.get_or_compute([*range(30), 200, 201])
        assert prompt_cache.num_computed == 44
        prompt_cache.get_or_compute([*range(10), 99])
        assert prompt_cache.num_computed == 55  # ten tokens in common are not worth it
        for prefix, ids in ((longer, [*range(40), 7, 8]), (forked, [*range(30), 200, 201])):
            anew = prefill(transformer, ids)
            for ours, theirs in zip(prefix.layers, anew.layers, strict=True):
                torch.testing.assert_close(joined(ours), joined(theirs), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_what_prompts_have_in_common_is_in_memory_once(tiny_pipeline: Pipeline) -> None:
    prompt_cache = PromptKVCache(tiny_pipeline.transformer)
    first = prompt_cache.get_or_compute(list(range(40)))
    forked = prompt_cache.get_or_compute([*range(30), 200, 201])
    longer = prompt_cache.get_or_compute([*range(30), 200, 201, 202])
    assert [prompt.length for prompt in (first, forked, longer)] == [40, 32, 33]
    for whole, *others in zip(first.layers, forked.layers, longer.layers, strict=True):
        for number, layer in enumerate(others, start=2):
            assert layer.before is not None
            assert layer.before.k_BGSH.data_ptr() == whole.k_BGSH.data_ptr()
            assert layer.before.v_BGSH.data_ptr() == whole.v_BGSH.data_ptr()
            assert layer.k_BGSH.shape[2] == number
    written = forked
    for token in (5, 6, 7):
        written = prefill(tiny_pipeline.transformer, [token], written)
    anew = prefill(tiny_pipeline.transformer, [*range(30), 200, 201, 5, 6, 7])
    for ours, theirs in zip(written.first(34).layers, anew.first(34).layers, strict=True):
        torch.testing.assert_close(joined(ours), joined(theirs), atol=1e-5, rtol=1e-5)
    assert written.first(20).layers[0].before is None


@torch.inference_mode()
def test_the_keys_and_values_of_a_prompt_hold_no_other_memory(tiny_pipeline: Pipeline) -> None:
    """A view of the fused projection would keep the queries alive for as long as the prompt."""
    for past in (None, prefill(tiny_pipeline.transformer, list(range(20)))):
        prompt = prefill(tiny_pipeline.transformer, [*range(20, 50)], past)
        for layer in prompt.layers:
            for tensor in (layer.k_BGSH, layer.v_BGSH):
                assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_rows_of_one_layout_share_a_rotary_table(tiny_pipeline: Pipeline) -> None:
    row = ImageSequence(ids=(0,) * 30, prefix_length=12, grid_height=4, grid_width=4)
    other_text = replace(row, ids=(1,) * 30)
    longer_text = replace(row, prefix_length=13)
    wider = replace(row, grid_height=2, grid_width=8)
    prompt_cache = PromptKVCache(tiny_pipeline.transformer)
    table = prompt_cache.rotary_table(row)
    assert prompt_cache.rotary_table(other_text) is table
    assert prompt_cache.fork().rotary_table(row) is table
    for another in (longer_text, wider):
        assert not torch.equal(prompt_cache.rotary_table(another).cos_SH, table.cos_SH)
    config = tiny_pipeline.transformer.config
    positions_S2 = grid_positions(row, row.image_stop)[row.prefix_length :]
    expected = build_rotary_table(positions_S2, config.head_dim, config.rope_theta)
    assert torch.equal(table.cos_SH, expected.cos_SH)
