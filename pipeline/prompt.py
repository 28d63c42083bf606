"""Prompt rewriting by the model itself, system prompts, and the model's choice of an image size."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import torch

from model.errors import ModelError
from model.kv_cache import PromptKVCache
from model.resolution import Size, find_size
from model.system_prompts import pick_system_prompt
from model.template import Prompt, TextTask
from model.text_generation import Sampler, choose_ratio, stop_tokens, write_texts
from pipeline.image_inputs import load_input_images
from pipeline.load import Pipeline
from pipeline.noise import text_stream
from pipeline.request import ImageRequest, TextWritten

REPORT_EVERY = 8  # tokens between two events of a text that is being written
_CLOSING = {"think": "</think>", "recaption": "</recaption>"}


class RewriteError(ModelError):
    """The checkpoint cannot rewrite prompts."""

    code = "unsupportedRewrite"


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """The prompt of one image after a rewrite, its KV cache, and warnings for its diagnostics.

    `upright_wh` are the width and height of the input images.
    """

    prompt: Prompt
    prompt_cache: PromptKVCache
    warnings: tuple[str, ...] = ()
    upright_wh: tuple[tuple[int, int], ...] = ()


def rewrite_prompts(
    pipeline: Pipeline, request: ImageRequest
) -> Generator[TextWritten, None, list[PreparedPrompt]]:
    """Return the prompt of each image; with a rewrite the model writes it, from the image's seed.

    Input images are encoded once. Their latents are samples from an image's own seed, so with them
    each image has a KV cache of its own.

    Raises:
        RewriteError: the checkpoint's template has no place for a rewrite.
        ModelError: an input image cannot be used, or this worker takes none.
    """
    if request.rewrite != "off" and pipeline.generation.template != "instruct":
        raise RewriteError(
            f"hunyuan.rewrite is {request.rewrite!r}, and this checkpoint's template is "
            f"{pipeline.generation.template!r}; only Instruct checkpoints rewrite prompts"
        )
    inputs = load_input_images(pipeline, request.images, is_stretched=request.align)
    prompt = Prompt(
        text=request.prompt,
        images=inputs.grids,
        system_prompt=resolve_system_prompt(pipeline, request),
        drop_think=pipeline.generation.drop_think,
    )
    common = PreparedPrompt(
        prompt,
        PromptKVCache(pipeline.transformer),
        upright_wh=tuple(image.upright_wh for image in inputs.prepared),
    )
    if request.rewrite == "off" and not request.images:
        return [common] * len(request.seeds)
    blocks = pipeline.template.image_blocks(prompt)

    def of_seed(seed: int) -> PreparedPrompt:
        embedded = inputs.embed(pipeline, blocks, seed)
        return replace(common, prompt_cache=common.prompt_cache.fork(embedded))

    if request.rewrite == "off":
        return [of_seed(seed) for seed in request.seeds]
    if not request.images:
        task: TextTask = "think" if request.rewrite == "think" else "recaption"
        with torch.inference_mode():
            common.prompt_cache.get_or_compute(pipeline.template.text_head(prompt, task))
    prepared: list[PreparedPrompt] = []
    for first in range(0, len(request.seeds), pipeline.batch_size):
        images = range(first, min(first + pipeline.batch_size, len(request.seeds)))
        unwritten = [of_seed(request.seeds[image]) for image in images]
        prepared += yield from _rewrite_batch(pipeline, request, images, unwritten)
    return prepared


def _rewrite_batch(
    pipeline: Pipeline,
    request: ImageRequest,
    images: range,
    unwritten: Sequence[PreparedPrompt],
) -> Generator[TextWritten, None, list[PreparedPrompt]]:
    """Rewrite the prompt for some images together.

    Each text continues the prompt in a KV cache of its own: an image must not depend, not even by
    rounding, on the text of another one.
    """
    task: TextTask = "think" if request.rewrite == "think" else "recaption"
    caches = [prompt.prompt_cache for prompt in unwritten]
    head = pipeline.template.text_head(unwritten[0].prompt, task)
    tokens: dict[int, list[int]] = {image: [] for image in images}
    rounds = write_texts(
        pipeline.transformer,
        [head] * len(images),
        [
            Sampler(pipeline.generation.text_sampling, text_stream(request.seeds[image]))
            for image in images
        ],
        stop_tokens(pipeline.tokenizer, task, len(pipeline.sizes)),
        pipeline.max_rewrite_tokens,
        caches,
    )
    for steps in rounds:
        for image, step in zip(images, steps, strict=True):
            if step is None:
                continue
            tokens[image].append(step.token)
            if len(tokens[image]) % REPORT_EVERY == 0:
                text = f"<{task}>{pipeline.tokenizer.decode(tokens[image])}"
                yield TextWritten(image=image, text=text)
    prepared = []
    for image, bare in zip(images, unwritten, strict=True):
        text, warnings = finish_text(pipeline, task, tokens[image])
        yield TextWritten(image=image, text=text)
        written = replace(bare.prompt, cot_text=text)
        prepared.append(replace(bare, prompt=written, warnings=warnings))
    return prepared


def finish_text(
    pipeline: Pipeline, task: TextTask, tokens: Sequence[int]
) -> tuple[str, tuple[str, ...]]:
    """Return the written text with its tags, closed if the model left them open, and warnings."""
    ends = {pipeline.tokenizer.control_id(t) for t in ("</answer>", "<|endoftext|>")}
    kept = tokens[:-1] if tokens and tokens[-1] in ends else tokens
    text = f"<{task}>{pipeline.tokenizer.decode(list(kept))}"
    warnings = []
    for tag, closing in _CLOSING.items():
        if text.count(f"<{tag}>") > text.count(closing):
            text += closing
            warnings.append(
                f"The model did not close <{tag}> within {len(tokens)} tokens; it was closed."
            )
    return text, tuple(warnings)


def resolve_system_prompt(pipeline: Pipeline, request: ImageRequest) -> str | None:
    """Return the request's system prompt, the settings' one, or the checkpoint's.

    Raises:
        ConfigError: the checkpoint needs a system prompt that it does not bring.
    """
    if request.system_prompt is not None:
        return request.system_prompt
    if pipeline.system_prompt != "auto":
        return None if pipeline.system_prompt == "none" else pipeline.system_prompt
    task: TextTask = "image" if request.rewrite == "off" else request.rewrite
    wanted = pipeline.generation.use_system_prompt
    return pick_system_prompt(pipeline.system_prompts, wanted, task)


def choose_sizes(
    pipeline: Pipeline, request: ImageRequest, prompts: Sequence[PreparedPrompt]
) -> list[Size]:
    """Return the size of each image; prompts that were not rewritten have one for all.

    Raises:
        ModelError: the request's size is not a trained one.
    """
    if request.rewrite == "off":
        return [choose_size(pipeline, request, prompts[0])] * len(prompts)
    return [choose_size(pipeline, request, prompt) for prompt in prompts]


def choose_size(pipeline: Pipeline, request: ImageRequest, prompt: PreparedPrompt) -> Size:
    """Return the request's size, or the one that the model finds most likely for the prompt.

    Raises:
        ModelError: the request's size is not a trained one.
    """
    if request.width_px is not None and request.height_px is not None:
        return find_size(pipeline.sizes, request.width_px, request.height_px)
    logits_Z = pipeline.ratio_logits(prompt.prompt, prompt.prompt_cache)
    offered = [size.index for size in pipeline.offered_sizes]
    chosen = choose_ratio(logits_Z, offered)
    return pipeline.sizes[pipeline.transformer.mesh.broadcast_int(chosen)]
