"""Autoregressive text and aspect-ratio sampling."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from model.generation_config import TextSampling
from model.kv_cache import PromptKVCache, prefill_batch
from model.template import Prompt, Template, TextTask
from model.tokenizer import Tokenizer
from model.transformer import HunyuanImage

# Chooses a token from the logits at the end of a text.
Choose = Callable[[Tensor], int]

# The ratio where no choice can be made: the square.
# Source: the recorded `fallback_to_16` of the reference.
FALLBACK_RATIO = 16


@dataclass(frozen=True, slots=True)
class TextStep:
    """One generated token, and the logits it was chosen from."""

    token: int
    logits_V: Tensor


class Sampler:
    """Samples tokens from a random stream of its own: a text does not depend on its batch."""

    def __init__(self, sampling: TextSampling, stream: np.random.Generator) -> None:
        self._warpers = [
            TemperatureLogitsWarper(sampling.temperature),
            TopKLogitsWarper(sampling.top_k),
            TopPLogitsWarper(sampling.top_p),
        ]
        self._stream = stream

    def __call__(self, logits_V: Tensor) -> int:
        scores_1V = logits_V.float().cpu().unsqueeze(0)
        for warp in self._warpers:
            scores_1V = warp(torch.empty(1, 0, dtype=torch.int64), scores_1V)
        cumulated_V = scores_1V[0].double().softmax(dim=-1).cumsum(dim=0)
        drawn = self._stream.random() * float(cumulated_V[-1])
        return int(torch.searchsorted(cumulated_V, drawn, right=True).clamp_max(len(logits_V) - 1))


def choose_likeliest(logits_V: Tensor) -> int:
    """Return the most likely token."""
    return int(logits_V.argmax())


def stop_tokens(tokenizer: Tokenizer, task: TextTask, num_ratios: int) -> list[int]:
    """Return the tokens that end the text of a task.

    Source: the recorded `stop_token_ids` of the reference's tasks.
    """
    end = tokenizer.control_id("<|endoftext|>")
    if task == "auto":
        return [end, *ratio_tokens(tokenizer, num_ratios)]
    return [tokenizer.control_id("</recaption>"), tokenizer.control_id("</answer>"), end]


def ratio_tokens(tokenizer: Tokenizer, num_ratios: int) -> list[int]:
    """Return the ids of `<img_ratio_0>` and so on."""
    return [tokenizer.control_id(f"<img_ratio_{i}>") for i in range(num_ratios)]


@torch.inference_mode()
def write_texts(
    transformer: HunyuanImage,
    heads: Sequence[Sequence[int]],
    choosers: Sequence[Choose],
    stop: Collection[int],
    max_tokens: int,
    prompt_caches: Sequence[PromptKVCache] | None = None,
) -> Iterator[list[TextStep | None]]:
    """Continue several texts, a token of each at a time, until a stop token or the limit.

    Yields a step per text, None for one that has ended. Heads may be of different length. The keys
    and values of a text are left in its own one of `prompt_caches`, for the image that follows.
    """
    caches = prompt_caches or [PromptKVCache(transformer) for _ in heads]
    texts = [list(head) for head in heads]
    pasts = [cache.get_or_compute(head) for cache, head in zip(caches, heads, strict=True)]
    running = list(range(len(heads)))
    for _ in range(max_tokens):
        steps: list[TextStep | None] = [None] * len(heads)
        for index in running:
            logits_V = transformer.text_logits(pasts[index].hidden_1SD[:, -1:])[0, 0]
            token = transformer.mesh.broadcast_int(choosers[index](logits_V))
            steps[index] = TextStep(token, logits_V)
        yield steps
        for index in running:
            step = steps[index]
            assert step is not None
            if step.token in stop:
                caches[index].put(texts[index], pasts[index])
            texts[index].append(step.token)
        running = [i for i in running if texts[i][-1] not in stop]
        if not running:
            return
        extended = prefill_batch(
            transformer, [texts[i][-1:] for i in running], [pasts[i] for i in running]
        )
        for index, past in zip(running, extended, strict=True):
            pasts[index] = past
    for index in running:
        caches[index].put(texts[index], pasts[index])


def write_greedily(
    transformer: HunyuanImage, ids: Sequence[int], stop: Collection[int], max_tokens: int
) -> Iterator[TextStep]:
    """Yield the most likely continuation of one text, up to and with a stop token."""
    for (step,) in write_texts(transformer, [ids], [choose_likeliest], stop, max_tokens):
        assert step is not None
        yield step


def ratio_logits(
    transformer: HunyuanImage,
    tokenizer: Tokenizer,
    template: Template,
    prompt: Prompt,
    num_ratios: int,
    prompt_cache: PromptKVCache | None = None,
) -> Tensor:
    """Return the logits of each `<img_ratio_i>` as the aspect ratio of a prompt's image.

    Shapes: -> logits_Z float32 with Z = num_ratios.
    """
    prompt_cache = prompt_cache or PromptKVCache(transformer)
    head = template.text_head(prompt, "img_ratio")
    last_1SD = prompt_cache.get_or_compute(head).hidden_1SD[:, -1:]
    return transformer.text_logits(last_1SD)[0, 0, ratio_tokens(tokenizer, num_ratios)]


def choose_ratio(logits_Z: Tensor, allowed: Sequence[int]) -> int:
    """Return the most likely of the allowed ratio indices; the square if no logit is finite.

    Not sampled: all images of a task are to have one size.
    """
    allowed_Z = logits_Z[list(allowed)]
    if not torch.isfinite(allowed_Z).any():
        return FALLBACK_RATIO
    return allowed[int(allowed_Z.nan_to_num(-torch.inf).argmax())]
