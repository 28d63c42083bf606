"""The recorded groups that need no image generated: schedules, noise, VAE, tokens, sizes, names."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from model.config_file import parse_config
from model.errors import UnsupportedSizeError
from model.loading.build import build_skeleton
from model.loading.weight_map import list_slots
from model.resolution import list_sizes
from model.template import Prompt, Template
from pipeline.load import Pipeline
from pipeline.noise import image_noise
from schedulers.sigmas import shifted_sigmas, timesteps_of
from tools.verify.checks import Check, compare_tensors, compare_values, left_out
from tools.verify.recording import Recording
from tools.verify.sizes import parse_reference_size

_SCHEDULE = re.compile(r"(sigmas|timesteps)_(\d+)_([\d.]+)")


def check_schedules(pipeline: Pipeline, recording: Recording) -> Iterator[Check]:
    """Compare `sigmas_STEPS_SHIFT` and `timesteps_STEPS_SHIFT`."""

    def ours(name: str, _: Tensor) -> Tensor | None:
        match = _SCHEDULE.fullmatch(name)
        if match is None:
            return None
        kind, steps, shift = match.groups()
        sigmas = shifted_sigmas(int(steps), float(shift))
        return sigmas if kind == "sigmas" else timesteps_of(sigmas)

    yield from _compare_file(recording, "schedules", ours)


def check_noise(pipeline: Pipeline, recording: Recording) -> Iterator[Check]:
    """Compare our float32 noise of each seed, rounded as the reference's was, with the recorded."""

    def ours(name: str, recorded: Tensor) -> Tensor | None:
        if not name.removeprefix("seed").isdigit():
            return None
        return image_noise(int(name.removeprefix("seed")), tuple(recorded.shape)).to(recorded.dtype)

    yield from _compare_file(recording, "noise", ours)


def check_vae(pipeline: Pipeline, recording: Recording) -> Iterator[Check]:
    """Compare encoding of `x` and decoding of `z`."""
    vae, device = pipeline.transformer.vae, pipeline.transformer.device
    recorded = recording.read_tensors("vae.safetensors")
    with torch.inference_mode():
        mean_BCYX, logvar_BCYX = vae.encode(recorded["x"].to(device))
        values = {
            "mean": mean_BCYX,
            "logvar": logvar_BCYX,
            "latents_mode_scaled": vae.scale(mean_BCYX),
            "decoded": vae.decode(
                vae.scale(recorded["z"].to(device).squeeze(2)), pipeline.transformer.mesh.whole
            ),
        }

    def ours(name: str, truth: Tensor) -> Tensor | None:
        if name in ("x", "z"):
            return truth  # the inputs
        return values[name].unsqueeze(2) if name in values else None

    yield from _compare_file(recording, "vae", ours)


def check_vit(pipeline: Pipeline, recording: Recording) -> Iterator[Check]:
    """Compare the vision tower and its aligner."""
    recorded = recording.read_tensors("vit.safetensors")
    tower, aligner = pipeline.transformer.vision_model, pipeline.transformer.vision_aligner
    if tower is None:
        yield from left_out("vit", recorded)
        return
    device = pipeline.transformer.device
    with torch.inference_mode():
        hidden_BSZ = tower(
            pixel_values=recorded["pixel_values"].to(device),
            pixel_attention_mask=recorded["mask"].to(device),
            spatial_shapes=recorded["spatial_shapes"].to(device),
        ).last_hidden_state
        values = {"vision_out": hidden_BSZ, "aligner_out": aligner(hidden_BSZ)}

    def ours(name: str, truth: Tensor) -> Tensor | None:
        return truth if name in ("pixel_values", "mask", "spatial_shapes") else values.get(name)

    yield from _compare_file(recording, "vit", ours)


def check_tokens(pipeline: Pipeline, recording: Recording) -> Iterator[Check]:
    """Compare id sequences of templates, tasks and plain encoding."""
    for index, entry in enumerate(recording.read_json("tokens.json")):
        kind = entry.get("kind")
        name = f"{index}: {kind} {entry.get('template', '')} {entry.get('bot_task', '')}".strip()
        if kind == "encode":
            yield from _check_encoding(pipeline, entry)
        elif kind == "gen_text":
            prompt = Prompt(text=entry["prompt"], system_prompt=entry["system_prompt"])
            ids = _template(pipeline, entry).text_head(prompt, entry["bot_task"])
            yield compare_values("tokens", name, ids, entry["ids"])
        elif kind == "gen_image":
            yield from _check_image_ids(pipeline, entry, name)
        elif kind == "system_prompt":
            note = "input only: the reference's own texts ship with its checkpoint, not here"
            yield Check("tokens", name, "", None, "", is_ok=True, note=note)
        else:
            yield from left_out("tokens", [name])


def _template(pipeline: Pipeline, entry: dict[str, Any]) -> Template:
    base_size = pipeline.transformer.config.image_base_size
    return Template(pipeline.tokenizer, entry["template"], base_size, parse_control=True)


def _check_encoding(pipeline: Pipeline, entry: dict[str, Any]) -> Iterator[Check]:
    for item in entry["items"]:
        ids = pipeline.tokenizer.encode_control(item["text"])
        name = f"encode {item['text'][:20]!r}"
        yield compare_values("tokens", name, ids, item["ids"])
        decoded = pipeline.tokenizer.decode(item["ids"])
        yield compare_values("tokens", f"{name} decoded", decoded, item["decoded"])


def _check_image_ids(pipeline: Pipeline, entry: dict[str, Any], name: str) -> Iterator[Check]:
    rows = replace(pipeline, template=_template(pipeline, entry)).guidance_rows(
        Prompt(
            text=entry["prompt"],
            system_prompt=entry["system_prompt"],
            cot_text=entry["cot_text"],
            drop_think=entry["drop_think"],
        ),
        None,
        parse_reference_size(entry["image_size"], pipeline.sizes),
    )
    for key, row in zip(("cond_ids_rle", "uncond_ids_rle"), rows, strict=True):
        runs = [[token, len(list(same))] for token, same in groupby(row.ids)]
        yield compare_values("tokens", f"{name} {key}", runs, entry[key])
    places = [[row.prefix_length] for row in rows]
    yield compare_values("tokens", f"{name} timestep", places, entry["timestep_index"])
    image = [rows[0].image_start, rows[0].image_stop]
    yield compare_values("tokens", f"{name} image_slice", image, entry["image_slice"])


def check_resolutions(pipeline: Pipeline, recording: Recording) -> Iterator[Check]:
    """Compare the buckets of several bases and how requests map onto them."""
    recorded = recording.read_json("resolutions.json")
    all_sizes = {base: list_sizes(int(base)) for base in recorded["bases"]}
    for base, buckets in recorded["bases"].items():
        ours = [[size.height_px, size.width_px] for size in all_sizes[base]]
        yield compare_values("resolutions", f"buckets of {base}", ours, buckets)
    requests = recorded["requests"]
    recorded_pairs = {(r["height"], r["width"]) for r in requests}
    # The requests belong to the base whose buckets hold all the sizes they came to.
    sizes = next(
        sizes
        for sizes in all_sizes.values()
        if recorded_pairs <= {(size.height_px, size.width_px) for size in sizes}
    )
    stride = requests[0]["height"] // requests[0]["token_h"]
    for request in requests:
        size = parse_reference_size(request["image_size"], sizes)
        outcome = {
            "image_size": request["image_size"],
            "height": size.height_px,
            "width": size.width_px,
            "ratio_index": size.index,
            "token_h": size.height_px // stride,
            "token_w": size.width_px // stride,
        }
        yield compare_values("resolutions", f"request {request['image_size']}", outcome, request)
    for odd in recorded.get("odd_requests", []):
        yield _check_refusal(odd["image_size"], recorded)


def _check_refusal(image_size: Any, recorded: dict[str, Any]) -> Check:
    """Check that a size is refused which the reference crashes on or mishandles."""
    try:
        outcome: object = parse_reference_size(image_size, list_sizes(1024))
    except UnsupportedSizeError:
        outcome = "refused"
    return compare_values("resolutions", f"odd request {image_size}", outcome, "refused")


def check_names(pipeline: Pipeline, recording: Recording) -> Iterator[Check]:
    """Compare the tensor names and shapes of the recorded checkpoint, and of the real one."""
    targets = list_slots(build_skeleton(pipeline.transformer.config))
    if recording.has("param_names.json"):
        recorded = recording.read_json("param_names.json")
        yield compare_values("names", "number of tensors", len(targets), len(recorded))
        yield from _compare_shapes("this checkpoint", targets, recorded)
    if recording.has("real_config_distil.json") and recording.has("real_param_shapes.json"):
        fields = recording.read_json("real_config_distil.json")
        distilled = ("cfg_distilled", "use_meanflow")
        config = parse_config({k: v for k, v in fields.items() if k not in distilled})
        real_targets = list_slots(build_skeleton(config))
        shapes = recording.read_json("real_param_shapes.json")
        # 5161 tensors. Source: the index of the official base checkpoint.
        yield compare_values("names", "number of real tensors", len(real_targets), 5161)
        yield from _compare_shapes("the real checkpoint", real_targets, shapes)


def _compare_shapes(
    label: str, targets: dict[str, Any], recorded: dict[str, list[int]]
) -> Iterator[Check]:
    ours = {name: list(targets[name].shape) for name in recorded if name in targets}
    wrong = {name: shape for name, shape in recorded.items() if ours.get(name) != shape}
    yield compare_values("names", f"{len(recorded)} shapes of {label}", wrong, {})


def _compare_file(recording: Recording, group: str, ours: Any) -> Iterator[Check]:
    file_name = f"{group}.safetensors"
    tolerances = recording.tolerances(file_name)
    for name, recorded in recording.read_tensors(file_name).items():
        value = ours(name, recorded)
        if value is None or name not in tolerances:
            yield from left_out(group, [name])
        elif value is recorded:
            shape = "x".join(map(str, recorded.shape))
            yield Check(group, name, shape, None, "", is_ok=True, note="input")
        else:
            yield compare_tensors(group, name, value, recorded, tolerances[name])
