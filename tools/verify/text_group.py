"""The autoregressive group: ratio choices and greedy texts, with the logits of every step."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from model.kv_cache import prefill
from model.template import Prompt, Template
from model.text_generation import ratio_tokens, stop_tokens, write_greedily
from pipeline.denoise import denoise, start_run
from pipeline.load import Pipeline
from pipeline.noise import image_noise
from schedulers.euler import Euler
from schedulers.sigmas import shifted_sigmas
from schedulers.trajectory import Trajectory
from tools.verify.checks import (
    Check,
    compare_images,
    compare_tensors,
    compare_values,
    left_out,
)
from tools.verify.recording import Recording

FALLBACK_RATIO = 16  # square. Source: the reference, for a token that is no ratio.


def check_text(pipeline: Pipeline, recording: Recording) -> Iterator[Check]:
    """Compare every recorded ratio choice and greedy text."""
    recorded = recording.read_tensors("ar.safetensors")
    tolerances = recording.tolerances("ar.safetensors")
    entries = recording.read_json("ar.json")
    ours: dict[str, torch.Tensor] = {}
    seen: Counter[str] = Counter()
    for entry in entries["img_ratio"]:
        name = f"{entry['template']}.ratio{seen[entry['template']]}"
        seen[entry["template"]] += 1
        yield from _choose(pipeline, entry, name, ours)
    for index, entry in enumerate(entries["text"]):
        yield from _write(pipeline, entry, f"text{index}", ours)
    for name, truth in recorded.items():
        if name in ours and name in tolerances:
            yield compare_tensors("ar", name, ours[name], truth, tolerances[name])
        else:
            yield from left_out("ar", [name])


def check_auto_case(pipeline: Pipeline, recording: Recording, name: str) -> Iterator[Check]:
    """Let the model choose the size greedily, then generate, as the recorded run did."""
    case = recording.cases[name]
    template, transformer = _template(pipeline, case), pipeline.transformer
    sampler = replace(pipeline, template=template)
    logits_Z = sampler.ratio_logits(_prompt(case))
    size = pipeline.sizes[int(logits_Z.argmax())]
    yield compare_values(name, "size_wh", [size.width_px, size.height_px], case["size_wh"])
    rows = sampler.rows(_prompt(case), None, size, float(case["guidance"]))
    # The reference sampled its noise in bfloat16.
    noise_BCYX = image_noise(int(case["seed"]), pipeline.latent_shape(size)).bfloat16()
    latent_BCYX = noise_BCYX.float().to(transformer.device)
    solver = Euler(tuple(shifted_sigmas(int(case["steps"]), float(case["flow_shift"])).tolist()))
    run = start_run(transformer, rows, Trajectory(solver, latent_BCYX), float(case["guidance"]))
    for done in denoise(transformer, [run]):
        latent_BCYX = done.latent_BCYX
    (file_name,) = case["files"]
    image_yx3 = pipeline.decode(latent_BCYX)[0]
    yield compare_images(name, file_name, image_yx3, recording.read_image(file_name))


@torch.inference_mode()
def _choose(
    pipeline: Pipeline, entry: dict[str, Any], name: str, ours: dict[str, torch.Tensor]
) -> Iterator[Check]:
    ids = _template(pipeline, entry).text_head(_prompt(entry), "img_ratio")
    last_1SD = prefill(pipeline.transformer, ids).hidden_1SD[:, -1:]
    logits_V = pipeline.transformer.text_logits(last_1SD)[0, 0]
    ours[f"{name}.ids"], ours[f"{name}.logits"] = torch.tensor(ids), logits_V
    ratios = ratio_tokens(pipeline.tokenizer, len(pipeline.sizes))
    token = int(logits_V.argmax())
    index = ratios.index(token) if token in ratios else FALLBACK_RATIO
    values = {
        "text": pipeline.tokenizer.decode(ids),
        "greedy_token": token,
        "fallback_to_16": token not in ratios,
        "height": pipeline.sizes[index].height_px,
        "width": pipeline.sizes[index].width_px,
        f"argmax_restricted_to_{len(ratios)}_ratios": int(logits_V[ratios].argmax()),
    }
    for key in values.keys() & entry.keys():
        yield compare_values("ar", f"{name} {key}", values[key], entry[key])


def _write(
    pipeline: Pipeline, entry: dict[str, Any], name: str, ours: dict[str, torch.Tensor]
) -> Iterator[Check]:
    ids = _template(pipeline, entry).text_head(_prompt(entry), entry["bot_task"])
    stop = stop_tokens(pipeline.tokenizer, entry["bot_task"], len(pipeline.sizes))
    steps = list(write_greedily(pipeline.transformer, ids, stop, len(entry["generated"])))
    written = [step.token for step in steps]
    ours[f"{name}.ids"] = torch.tensor([*ids, *written])
    ours[f"{name}.logits"] = torch.stack([step.logits_V for step in steps])
    yield compare_values("ar", f"{name} prompt_len", len(ids), entry["prompt_len"])
    yield compare_values("ar", f"{name} stop_token_ids", set(stop), set(entry["stop_token_ids"]))
    yield compare_values("ar", f"{name} generated", written, entry["generated"])
    stopped = written[-1] in stop
    yield compare_values("ar", f"{name} stopped_by_eos", stopped, entry["stopped_by_eos"])


def _template(pipeline: Pipeline, entry: dict[str, Any]) -> Template:
    base_size = pipeline.transformer.config.image_base_size
    return Template(pipeline.tokenizer, entry["template"], base_size, parse_control=True)


def _prompt(entry: dict[str, Any]) -> Prompt:
    return Prompt(text=entry["prompt"], system_prompt=entry.get("system_prompt"))
