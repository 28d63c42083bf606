"""Text decoding speed: tokens a second, and the share of matrix products in a step."""

import statistics
import time
from dataclasses import dataclass
from itertools import pairwise

import torch

from model.kv_cache import PromptKVCache, prefill, prefill_batch
from model.text_generation import choose_likeliest, write_texts
from pipeline.load import Pipeline
from tools.bench.step import CallRecorder


@dataclass(frozen=True, kw_only=True, slots=True)
class TextResult:
    """Medians over the tokens of a text; times in seconds.

    `bare_s` is what the step's own matrix products and attention calls take by themselves;
    `recomputed_s` and `reused_s` are the image's prompt after a text, anew and from the text's
    own keys and values.
    """

    batch: int
    prompt_tokens: int
    tokens: int
    step_s: float
    tokens_per_s: float
    bare_s: float
    share_bare: float
    recomputed_s: float
    reused_s: float


@torch.inference_mode()
def run_text_bench(pipeline: Pipeline, batch: int, num_prompt: int, num_tokens: int) -> TextResult:
    """Write `batch` texts of so many tokens after prompts of so many."""
    transformer = pipeline.transformer
    vocabulary = transformer.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    heads = torch.randint(0, vocabulary // 2, (batch, num_prompt), generator=generator).tolist()
    prompt_cache = [PromptKVCache(transformer) for _ in heads]
    stamps = [time.perf_counter()]
    texts = [list(head) for head in heads]
    rounds = write_texts(
        transformer, heads, [choose_likeliest] * batch, [], num_tokens, prompt_cache
    )
    for steps in rounds:
        for text, step in zip(texts, steps, strict=True):
            text.append(step.token if step else 0)
        stamps.append(time.perf_counter())
    step_s = statistics.median(b - a for a, b in pairwise(stamps[2:]))
    bare_s = _bare_seconds(pipeline, heads)
    recomputed_s, reused_s = _prompt_seconds(pipeline, texts[0], prompt_cache[0])
    return TextResult(
        batch=batch,
        prompt_tokens=num_prompt,
        tokens=num_tokens,
        step_s=step_s,
        tokens_per_s=batch / step_s,
        bare_s=bare_s,
        share_bare=bare_s / step_s,
        recomputed_s=recomputed_s,
        reused_s=reused_s,
    )


def _bare_seconds(pipeline: Pipeline, heads: list[list[int]]) -> float:
    """Return the time of one decode step's heavy calls, replayed with nothing between them."""
    pasts = [prefill(pipeline.transformer, head) for head in heads]
    with CallRecorder() as recorder:
        (*_,) = prefill_batch(pipeline.transformer, [[1]] * len(heads), pasts)
        pipeline.transformer.text_logits(pasts[0].hidden_1SD[:, -1:])
    times = []
    for _ in range(20):
        start = time.perf_counter()
        recorder.replay()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _prompt_seconds(
    pipeline: Pipeline, text: list[int], text_cache: PromptKVCache
) -> tuple[float, float]:
    """Return the time of an image's prompt after a text: anew, and from what the text left."""
    image_prompt = [*text, 1, 2, 3]
    times = []
    for prompt_cache in (PromptKVCache(pipeline.transformer), text_cache):
        start = time.perf_counter()
        prompt_cache.get_or_compute(image_prompt)
        times.append(time.perf_counter() - start)
    return times[0], times[1]
