"""What the model says in words: text, token by token, and the shape it would choose."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.prefix import Prefix, compute_prefix
from model.template import Prompt, Template, TextTask
from model.tokenizer import Tokenizer
from model.transformer import HunyuanImage


@dataclass(frozen=True, slots=True)
class TextStep:
    """One token that the model wrote, and the logits it was chosen from."""

    token: int
    logits_V: Tensor


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
def write_greedily(
    transformer: HunyuanImage, ids: Sequence[int], stop: Collection[int], max_tokens: int
) -> Iterator[TextStep]:
    """Yield the most likely continuation of `ids`, up to and with a stop token."""
    past: Prefix | None = None
    pending = list(ids)
    for _ in range(max_tokens):
        past = compute_prefix(transformer, pending, past)
        logits_V = transformer.text_logits(past.hidden_1SD[:, -1:])[0, 0]
        token = int(logits_V.argmax())
        yield TextStep(token, logits_V)
        if token in stop:
            return
        pending = [token]


def ratio_logits(
    transformer: HunyuanImage,
    tokenizer: Tokenizer,
    template: Template,
    prompt: Prompt,
    num_ratios: int,
) -> Tensor:
    """Return the model's logits for each `<img_ratio_i>` as the shape of a prompt's picture.

    Shapes: -> logits_Z float32 with Z = num_ratios.
    """
    ids = template.text_head(prompt, "img_ratio")
    last_1SD = compute_prefix(transformer, ids).hidden_1SD[:, -1:]
    return transformer.text_logits(last_1SD)[0, 0, ratio_tokens(tokenizer, num_ratios)]
