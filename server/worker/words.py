"""What happens in words before a picture: the prompt rewritten or thought about, and the size."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import torch

from model.errors import ModelError
from model.prefix import Prefixes
from model.resolution import Size, find_size
from model.system_prompts import pick_system_prompt
from model.template import Prompt, TextTask
from model.text import Sampler, choose_ratio, ratio_logits, stop_tokens, write_texts
from server.messages import Job, TextWritten
from server.worker.parts import Parts

REPORT_EVERY = 8  # tokens between two messages on a text that is being written
_CLOSING = {"think": "</think>", "recaption": "</recaption>"}


class RewriteError(ModelError):
    """The checkpoint cannot rewrite prompts."""

    code = "unsupportedRewrite"


@dataclass(frozen=True, slots=True)
class Written:
    """The prompt of one picture after the words, what was computed of it, and what to warn of."""

    prompt: Prompt
    prefixes: Prefixes
    warnings: tuple[str, ...] = ()


def write_prompts(parts: Parts, job: Job) -> Generator[TextWritten, None, list[Written]]:
    """Let the model rewrite the prompt, once per picture from its own seed; report as it goes.

    Raises:
        RewriteError: the checkpoint's template has no place for it.
    """
    prompt = Prompt(
        text=job.prompt,
        system_prompt=resolve_system_prompt(parts, job),
        drop_think=parts.generation.drop_think,
    )
    prefixes = Prefixes(parts.transformer)
    if job.rewrite == "off":
        return [Written(prompt, prefixes)] * len(job.seeds)
    if parts.generation.template != "instruct":
        raise RewriteError(
            f"hunyuan.rewrite is {job.rewrite!r}, and this checkpoint's template is "
            f"{parts.generation.template!r}; only Instruct checkpoints rewrite prompts"
        )
    written: list[Written] = []
    for first in range(0, len(job.seeds), parts.batch_size):
        images = range(first, min(first + parts.batch_size, len(job.seeds)))
        written += yield from _write_batch(parts, job, images, prompt, prefixes)
    return written


def _write_batch(
    parts: Parts, job: Job, images: range, prompt: Prompt, prefixes: Prefixes
) -> Generator[TextWritten, None, list[Written]]:
    """Write the texts of some pictures together.

    Each goes on from the prompt in a copy of its own: a picture is not to depend, not even by
    rounding, on what was written for another one.
    """
    task: TextTask = "think" if job.rewrite == "think" else "recaption"
    head = parts.template.text_head(prompt, task)
    with torch.inference_mode():
        prefixes.get(head)
    own_prefixes = [prefixes.fork() for _ in images]
    tokens: list[list[int]] = [[] for _ in images]
    rounds = write_texts(
        parts.transformer,
        [head] * len(images),
        [Sampler(parts.generation.text_sampling, job.seeds[image]) for image in images],
        stop_tokens(parts.tokenizer, task, len(parts.sizes)),
        parts.max_rewrite_tokens,
        own_prefixes,
    )
    for steps in rounds:
        for image, own, step in zip(images, tokens, steps, strict=True):
            if step is None:
                continue
            own.append(step.token)
            if len(own) % REPORT_EVERY == 0:
                text = f"<{task}>{parts.tokenizer.decode(own)}"
                yield TextWritten(job_id=job.job_id, image=image, text=text)
    written = []
    for image, own, computed in zip(images, tokens, own_prefixes, strict=True):
        text, warnings = finish_text(parts, task, own)
        yield TextWritten(job_id=job.job_id, image=image, text=text)
        written.append(Written(replace(prompt, cot_text=text), computed, warnings))
    return written


def finish_text(parts: Parts, task: TextTask, tokens: Sequence[int]) -> tuple[str, tuple[str, ...]]:
    """Return the written text with its tags, closed if the model left them open."""
    ends = {parts.tokenizer.control_id(t) for t in ("</answer>", "<|endoftext|>")}
    own = list(tokens[:-1]) if tokens and tokens[-1] in ends else list(tokens)
    text = f"<{task}>{parts.tokenizer.decode(own)}"
    warnings = []
    for tag, closing in _CLOSING.items():
        if text.count(f"<{tag}>") > text.count(closing):
            text += closing
            warnings.append(
                f"The model did not close <{tag}> within {len(tokens)} tokens; it was closed."
            )
    return text, tuple(warnings)


def resolve_system_prompt(parts: Parts, job: Job) -> str | None:
    """Return the task's own system prompt, the settings' one, or the checkpoint's.

    Raises:
        ConfigError: the checkpoint asks for a system prompt that it does not bring.
    """
    if job.system_prompt is not None:
        return job.system_prompt
    if parts.system_prompt != "auto":
        return None if parts.system_prompt == "none" else parts.system_prompt
    task: TextTask = "image" if job.rewrite == "off" else job.rewrite
    return pick_system_prompt(parts.system_prompts, parts.generation.use_system_prompt, task)


@torch.inference_mode()
def choose_size(parts: Parts, job: Job, written: Written) -> Size:
    """Return the task's size, or the one that the model finds most likely for the prompt.

    Raises:
        ModelError: the task's size is not a trained one.
    """
    if job.width_px is not None and job.height_px is not None:
        return find_size(parts.sizes, job.width_px, job.height_px)
    logits_Z = ratio_logits(
        parts.transformer,
        parts.tokenizer,
        parts.template,
        written.prompt,
        len(parts.sizes),
        written.prefixes,
    )
    offered = [size.index for size in parts.offered_sizes]
    return parts.sizes[parts.transformer.mesh.first_says(choose_ratio(logits_Z, offered))]
