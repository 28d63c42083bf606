"""What happens in words before an image: the prompt rewritten or thought about, and the size."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import torch

from model.errors import ModelError
from model.kv_cache import PromptKVCache
from model.resolution import Size, find_size
from model.system_prompts import pick_system_prompt
from model.template import Prompt, TextTask
from model.text_generation import Sampler, choose_ratio, ratio_logits, stop_tokens, write_texts
from pipeline.load import Pipeline
from server.engine.messages import Job, TextWritten

REPORT_EVERY = 8  # tokens between two messages on a text that is being written
_CLOSING = {"think": "</think>", "recaption": "</recaption>"}


class RewriteError(ModelError):
    """The checkpoint cannot rewrite prompts."""

    code = "unsupportedRewrite"


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """The prompt of one image after the words, what was computed of it, and what to warn of."""

    prompt: Prompt
    prompt_cache: PromptKVCache
    warnings: tuple[str, ...] = ()


def rewrite_prompts(
    pipeline: Pipeline, job: Job
) -> Generator[TextWritten, None, list[PreparedPrompt]]:
    """Let the model rewrite the prompt, once per image from its own seed; report as it goes.

    Raises:
        RewriteError: the checkpoint's template has no place for it.
    """
    prompt = Prompt(
        text=job.prompt,
        system_prompt=resolve_system_prompt(pipeline, job),
        drop_think=pipeline.generation.drop_think,
    )
    prompt_cache = PromptKVCache(pipeline.transformer)
    if job.rewrite == "off":
        return [PreparedPrompt(prompt, prompt_cache)] * len(job.seeds)
    if pipeline.generation.template != "instruct":
        raise RewriteError(
            f"hunyuan.rewrite is {job.rewrite!r}, and this checkpoint's template is "
            f"{pipeline.generation.template!r}; only Instruct checkpoints rewrite prompts"
        )
    written: list[PreparedPrompt] = []
    for first in range(0, len(job.seeds), pipeline.batch_size):
        images = range(first, min(first + pipeline.batch_size, len(job.seeds)))
        written += yield from _write_batch(pipeline, job, images, prompt, prompt_cache)
    return written


def _write_batch(
    pipeline: Pipeline, job: Job, images: range, prompt: Prompt, prompt_cache: PromptKVCache
) -> Generator[TextWritten, None, list[PreparedPrompt]]:
    """Write the texts of some images together.

    Each goes on from the prompt in a copy of its own: an image is not to depend, not even by
    rounding, on what was written for another one.
    """
    task: TextTask = "think" if job.rewrite == "think" else "recaption"
    head = pipeline.template.text_head(prompt, task)
    with torch.inference_mode():
        prompt_cache.get(head)
    own_caches = [prompt_cache.fork() for _ in images]
    tokens: list[list[int]] = [[] for _ in images]
    rounds = write_texts(
        pipeline.transformer,
        [head] * len(images),
        [Sampler(pipeline.generation.text_sampling, job.seeds[image]) for image in images],
        stop_tokens(pipeline.tokenizer, task, len(pipeline.sizes)),
        pipeline.max_rewrite_tokens,
        own_caches,
    )
    for steps in rounds:
        for image, own, step in zip(images, tokens, steps, strict=True):
            if step is None:
                continue
            own.append(step.token)
            if len(own) % REPORT_EVERY == 0:
                text = f"<{task}>{pipeline.tokenizer.decode(own)}"
                yield TextWritten(job_id=job.job_id, image=image, text=text)
    written = []
    for image, own, computed in zip(images, tokens, own_caches, strict=True):
        text, warnings = finish_text(pipeline, task, own)
        yield TextWritten(job_id=job.job_id, image=image, text=text)
        written.append(PreparedPrompt(replace(prompt, cot_text=text), computed, warnings))
    return written


def finish_text(
    pipeline: Pipeline, task: TextTask, tokens: Sequence[int]
) -> tuple[str, tuple[str, ...]]:
    """Return the written text with its tags, closed if the model left them open."""
    ends = {pipeline.tokenizer.control_id(t) for t in ("</answer>", "<|endoftext|>")}
    own = list(tokens[:-1]) if tokens and tokens[-1] in ends else list(tokens)
    text = f"<{task}>{pipeline.tokenizer.decode(own)}"
    warnings = []
    for tag, closing in _CLOSING.items():
        if text.count(f"<{tag}>") > text.count(closing):
            text += closing
            warnings.append(
                f"The model did not close <{tag}> within {len(tokens)} tokens; it was closed."
            )
    return text, tuple(warnings)


def resolve_system_prompt(pipeline: Pipeline, job: Job) -> str | None:
    """Return the task's own system prompt, the settings' one, or the checkpoint's.

    Raises:
        ConfigError: the checkpoint asks for a system prompt that it does not bring.
    """
    if job.system_prompt is not None:
        return job.system_prompt
    if pipeline.system_prompt != "auto":
        return None if pipeline.system_prompt == "none" else pipeline.system_prompt
    task: TextTask = "image" if job.rewrite == "off" else job.rewrite
    return pick_system_prompt(pipeline.system_prompts, pipeline.generation.use_system_prompt, task)


@torch.inference_mode()
def choose_size(pipeline: Pipeline, job: Job, written: PreparedPrompt) -> Size:
    """Return the task's size, or the one that the model finds most likely for the prompt.

    Raises:
        ModelError: the task's size is not a trained one.
    """
    if job.width_px is not None and job.height_px is not None:
        return find_size(pipeline.sizes, job.width_px, job.height_px)
    logits_Z = ratio_logits(
        pipeline.transformer,
        pipeline.tokenizer,
        pipeline.template,
        written.prompt,
        len(pipeline.sizes),
        written.prompt_cache,
    )
    offered = [size.index for size in pipeline.offered_sizes]
    return pipeline.sizes[pipeline.transformer.mesh.broadcast_int(choose_ratio(logits_Z, offered))]
