"""Text written by the model: alone or batched, greedy or generated, from a cache or anew."""

import pytest
import torch

from model.generation_config import TextSampling
from model.kv_cache import PromptKVCache, prefill
from model.resolution import list_offered_sizes
from model.text_generation import (
    FALLBACK_RATIO,
    Sampler,
    TextStep,
    choose_likeliest,
    choose_ratio,
    write_greedily,
    write_texts,
)
from pipeline.load import Pipeline
from pipeline.noise import text_stream

SAMPLING = TextSampling(temperature=0.6, top_k=50, top_p=0.95)
HEADS = [list(range(40)), list(range(100, 117)), list(range(60, 63))]


def written(rounds: list[list[TextStep | None]]) -> list[list[int]]:
    return [[s.token for s in steps if s is not None] for steps in zip(*rounds, strict=True)]


def write(
    pipeline: Pipeline, heads: list[list[int]], seeds: list[int], count: int
) -> list[list[int]]:
    choosers = [Sampler(SAMPLING, text_stream(seed)) for seed in seeds]
    return written(list(write_texts(pipeline.transformer, heads, choosers, [], count)))


def test_a_generated_text_is_the_same_alone_and_in_a_batch_of_other_lengths(
    tiny_pipeline: Pipeline,
) -> None:
    together = write(tiny_pipeline, HEADS, [1, 2, 3], 12)
    alone = [write(tiny_pipeline, [h], [s], 12)[0] for h, s in zip(HEADS, (1, 2, 3), strict=True)]
    assert together == alone
    assert len({tuple(text) for text in together}) == 3


def test_a_seed_writes_its_text_again_and_another_one_does_not(tiny_pipeline: Pipeline) -> None:
    first = write(tiny_pipeline, HEADS[:1], [7], 12)
    assert write(tiny_pipeline, HEADS[:1], [7], 12) == first
    assert write(tiny_pipeline, HEADS[:1], [8], 12) != first


def test_logits_of_a_growing_text_equal_those_of_the_whole(tiny_pipeline: Pipeline) -> None:
    transformer = tiny_pipeline.transformer
    steps = list(write_greedily(transformer, HEADS[0], [], 10))
    whole = [*HEADS[0], *(step.token for step in steps)]
    with torch.inference_mode():
        logits = transformer.text_logits(prefill(transformer, whole).hidden_1SD)[0]
    for index, step in enumerate(steps):
        expected = logits[len(HEADS[0]) - 1 + index]
        torch.testing.assert_close(step.logits_V, expected, atol=1e-4, rtol=1e-4)
        assert step.token == int(expected.argmax())


def test_a_text_ends_with_its_stop_token_while_others_go_on(tiny_pipeline: Pipeline) -> None:
    free = write(tiny_pipeline, HEADS, [1, 2, 3], 12)
    stop = free[1][4]
    assert stop not in free[0] + free[2]
    choosers = [Sampler(SAMPLING, text_stream(seed)) for seed in (1, 2, 3)]
    stopped = written(list(write_texts(tiny_pipeline.transformer, HEADS, choosers, [stop], 12)))
    assert stopped == [free[0], free[1][: free[1].index(stop) + 1], free[2]]


def test_a_step_for_one_row_reads_only_the_experts_it_routes_to(tiny_pipeline: Pipeline) -> None:
    """Every other expert is poisoned; the text stays the same."""
    transformer = tiny_pipeline.transformer
    steps = list(write_greedily(transformer, HEADS[0], [], 2))
    with torch.inference_mode():
        past = prefill(transformer, HEADS[0])
        used: list[set[int]] = []
        handles = [
            layer.mlp.gate.register_forward_hook(
                lambda _, __, out: used.append(set(out[1].flatten().tolist()))
            )
            for layer in transformer.layers
        ]
        prefill(transformer, [steps[0].token], past)
        for handle in handles:
            handle.remove()
        saved = []
        for layer, routed in zip(transformer.layers, used, strict=True):
            assert len(routed) == transformer.config.layers[0].experts_per_token
            for name in ("gate_and_up_proj", "down_proj"):
                weights = getattr(layer.mlp.experts, name)
                saved.append((weights, weights.clone()))
                for expert in set(range(weights.shape[0])) - routed:
                    weights[expert] = torch.nan
        poisoned = prefill(transformer, [steps[0].token], past)
        for weights, clean in saved:
            weights.copy_(clean)
        logits = transformer.text_logits(poisoned.hidden_1SD)[0, 0]
    torch.testing.assert_close(logits, steps[1].logits_V)


def test_greedy_is_the_limit_of_low_temperature() -> None:
    logits = torch.randn(100, generator=torch.Generator().manual_seed(0))
    cold = Sampler(TextSampling(temperature=1e-4, top_k=100, top_p=1.0), text_stream(3))
    assert cold(logits) == choose_likeliest(logits)


def test_samples_follow_the_probabilities_within_top_k_and_top_p() -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03])
    sampler = Sampler(TextSampling(temperature=1.0, top_k=4, top_p=0.8), text_stream(5))
    samples = torch.tensor([sampler(probabilities.log()) for _ in range(4000)])
    shares = torch.bincount(samples, minlength=5) / 4000
    expected = torch.tensor([0.5, 0.25, 0.15, 0.0, 0.0]) / 0.9
    torch.testing.assert_close(shares, expected, atol=0.03, rtol=0)


def test_an_image_after_a_text_computes_only_what_is_new(tiny_pipeline: Pipeline) -> None:
    transformer = tiny_pipeline.transformer
    prompt_cache = PromptKVCache(transformer)
    choosers = [choose_likeliest]
    rounds = list(write_texts(transformer, [HEADS[0]], choosers, [], 8, [prompt_cache]))
    (tokens,) = written(rounds)
    before = prompt_cache.num_computed
    with torch.inference_mode():
        prompt_cache.get_or_compute([*HEADS[0], *tokens, 5, 6])
    assert prompt_cache.num_computed - before == 2


def test_a_ratio_is_the_likeliest_of_the_offered_ones() -> None:
    offered = [size.index for size in list_offered_sizes(1024)]
    logits = torch.zeros(33)
    logits[[0, 20]] = torch.tensor([9.0, 1.0])  # the first is not offered
    assert choose_ratio(logits, offered) == 20


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_a_choice_that_is_no_shape_is_the_square(value: float) -> None:
    assert choose_ratio(torch.full((33,), value), list(range(8, 25))) == FALLBACK_RATIO
