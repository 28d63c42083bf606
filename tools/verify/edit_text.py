"""The recorded id sequences and greedy texts with input images in the prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from model.image_block import ImageGrid
from model.image_input import EmbeddedImage, embed_image
from model.kv_cache import PromptKVCache
from model.sequence import ImageSequence, prompt_positions, prompt_spans, visibility_mask
from model.template import Prompt, Template
from model.text_generation import choose_likeliest, stop_tokens, write_texts
from pipeline.image_inputs import load_input_images, prepare_image
from pipeline.load import Pipeline
from tools.verify.checks import Check, compare_tensors, compare_values, left_out
from tools.verify.recording import Recording
from tools.verify.sizes import parse_reference_size


def check_edit_tokens(pipeline: Pipeline, recording: Recording) -> Iterator[Check]:
    """Compare the ids of both templates, with none to three input images, in every stage."""
    entries = recording.read_json("edit_tokens.json")
    files = {file for entry in entries for file in entry.get("images", [])}
    grids = {
        file: prepare_image(
            pipeline, (recording.folder / file).read_bytes(), file, is_stretched=False
        ).grid
        for file in sorted(files)
    }
    for index, entry in enumerate(entries):
        kind = entry["kind"]
        name = f"{index}: {kind} {entry.get('template', '')} {len(entry.get('images', []))} images"
        if kind == "system_prompt":
            note = "input only: the release's own texts ship with its checkpoint, not here"
            yield Check("edit_tokens", name, "", None, "", is_ok=True, note=note)
            continue
        prompt = _prompt(entry, [grids[file] for file in entry["images"]])
        template = _template(pipeline, entry)
        if kind == "gen_text":
            ids = template.text_head(prompt, entry["bot_task"])
            yield compare_values("edit_tokens", name, _runs(ids), entry["ids_rle"])
        else:
            size = parse_reference_size(entry["image_size"], pipeline.sizes)
            rows = replace(pipeline, template=template).guidance_rows(prompt, None, size)
            for key, ours in _describe_rows(rows).items():
                yield compare_values("edit_tokens", f"{name} {key}", ours, entry[key])


def _describe_rows(rows: Sequence[ImageSequence]) -> dict[str, object]:
    conditional, unconditional = rows
    blocks = conditional.blocks
    return {
        "cond_ids_rle": _runs(conditional.ids),
        "uncond_ids_rle": _runs(unconditional.ids),
        "gen_timestep_index": [conditional.prefix_length],
        "cond_timestep_index": [block.start - 1 for block in blocks],
        "gen_image_slice": [conditional.image_start, conditional.image_stop],
        "joint_image_slices": [[block.start, block.stop] for block in blocks],
        "vae_image_slices": [[block.start, block.separator] for block in blocks],
        "vit_image_slices": [[block.separator + 1, block.stop] for block in blocks],
    }


def check_edit_text(pipeline: Pipeline, recording: Recording) -> Iterator[Check]:
    """Compare greedy texts, the logits of every step, and the layout of their prompts."""
    recorded = recording.read_tensors("edit_text.safetensors")
    tolerances = recording.tolerances("edit_text.safetensors")
    ours: dict[str, Tensor] = {}
    for index, entry in enumerate(recording.read_json("edit_text.json")):
        yield from _write(pipeline, recording, entry, f"text{index}", recorded, ours)
    for name, truth in recorded.items():
        if ".vae_noise_" in name:
            yield Check("edit_text", name, "", None, "", is_ok=True, note="input")
        elif name in ours and name in tolerances:
            yield compare_tensors("edit_text", name, ours[name], truth, tolerances[name])
        else:
            yield from left_out("edit_text", [name])


@torch.inference_mode()
def _write(
    pipeline: Pipeline,
    recording: Recording,
    entry: dict[str, Any],
    name: str,
    recorded: dict[str, Tensor],
    ours: dict[str, Tensor],
) -> Iterator[Check]:
    """Continue one prompt from the recorded noise of its images."""
    files = [(recording.folder / file).read_bytes() for file in entry["images"]]
    inputs = load_input_images(pipeline, files, is_stretched=False)
    prompt, template, task = _prompt(entry, inputs.grids), _template(pipeline, entry), "bot_task"
    blocks = template.image_blocks(prompt)
    noises = [recorded[f"{name}.vae_noise_{j}"].unsqueeze(0) for j in range(len(files))]
    images: list[EmbeddedImage] = [
        embed_image(pipeline.transformer, encoded, noise.to(pipeline.transformer.device), block, "")
        for encoded, noise, block in zip(inputs.encoded, noises, blocks, strict=True)
    ]
    ids = template.text_head(prompt, entry[task])
    stop = entry["stop_token_ids"]
    cache = PromptKVCache(pipeline.transformer, images)
    count = len(entry["generated"])
    steps = [
        step
        for (step,) in write_texts(
            pipeline.transformer, [ids], [choose_likeliest], stop, count, [cache]
        )
        if step is not None
    ]
    written = [step.token for step in steps]
    ours[f"{name}.ids"] = torch.tensor([*ids, *written])
    ours[f"{name}.logits"] = torch.stack([step.logits_V for step in steps])
    ours[f"{name}.rope_pos"] = prompt_positions(blocks, 0, len(ids) + len(written))
    mask_SS = visibility_mask(prompt_spans(blocks, 0, len(ids)), len(ids))
    ours[f"{name}.attn_mask_rowsum"] = mask_SS.sum(-1)
    yield compare_values("edit_text", f"{name} prompt_len", len(ids), entry["prompt_len"])
    yield compare_values("edit_text", f"{name} generated", written, entry["generated"])
    if entry[task] != "auto":  # whose recorded stop token is one of the real tokenizer
        missing = set(stop) - set(stop_tokens(pipeline.tokenizer, entry[task], len(pipeline.sizes)))
        yield compare_values("edit_text", f"{name} stop tokens that do not stop", missing, set())


def _prompt(entry: dict[str, Any], grids: Sequence[ImageGrid]) -> Prompt:
    cot_text = entry.get("cot_text")
    if cot_text and "<" not in cot_text and entry["template"] == "instruct":
        # The Instruct release wraps a caller's text that has no tags; ours always has them.
        cot_text = f"<answer>{cot_text}</answer>"
    return Prompt(
        text=entry["prompt"],
        images=tuple(grids),
        system_prompt=entry["system_prompt"],
        cot_text=cot_text,
        drop_think=entry.get("drop_think", False),
    )


def _template(pipeline: Pipeline, entry: dict[str, Any]) -> Template:
    base_size = pipeline.transformer.config.image_base_size
    return Template(pipeline.tokenizer, entry["template"], base_size, parse_control=True)


def _runs(ids: Sequence[int]) -> list[list[int]]:
    return [[token, len(list(same))] for token, same in groupby(ids)]
