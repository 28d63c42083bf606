"""An image case: an image generated from recorded noise, compared at every recorded point."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from cache.protocol import Evaluation, RunFirstBlock, RunRemainingBlocks, StepContext
from model.image_input import EmbeddedImage
from model.kv_cache import PromptKVCache
from model.mesh import SINGLE
from model.resolution import Size
from model.rope import build_rotary_table
from model.sequence import (
    ImageSequence,
    grid_positions,
    sequence_spans,
    step_spans,
    visibility_mask,
)
from model.template import Prompt, Template
from model.vae import to_uint8
from pipeline.denoise import Denoised, denoise, start_run
from pipeline.load import Pipeline
from schedulers.euler import Euler
from schedulers.sigmas import shifted_sigmas, timesteps_of
from schedulers.trajectory import Trajectory
from tools.verify.checks import (
    Check,
    compare_images,
    compare_tensors,
    compare_values,
    left_out,
)
from tools.verify.full_sequence import trace_full_sequence
from tools.verify.recording import Recording
from tools.verify.sizes import parse_reference_size

_INPUT = re.compile(r"latents_init|vae_noise_\d")
_STEP = re.compile(r"(pred|latents|inputs_embeds|backbone_out)_step(\d+)")


@dataclass
class Probe:
    """A step cache that reuses nothing and keeps what went through it."""

    inputs: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)

    def evaluate(self, context: StepContext, x_BSD: Tensor) -> Evaluation:
        self.inputs[context.step] = x_BSD
        first_BSD = yield RunFirstBlock(x_BSD)
        self.outputs[context.step] = yield RunRemainingBlocks(first_BSD)
        return self.outputs[context.step]


class ImageCase:
    """One recorded case, run lazily: what is not recorded is not computed."""

    def __init__(self, pipeline: Pipeline, recording: Recording, name: str) -> None:
        self._pipeline = pipeline
        self._recording = recording
        self._case = recording.cases[name]
        self._name = name
        self._file = f"{name}.safetensors"
        self._recorded = recording.read_tensors(self._file)

    def checks(self) -> Iterator[Check]:
        """Yield a row for every recorded tensor, value and image of the case."""
        group = self._name
        tolerances = self._recording.tolerances(self._file)
        yield from self._value_checks()
        for name, recorded in self._recorded.items():
            if name not in tolerances:
                yield from left_out(group, [f"{name} (not in the manifest)"])
            elif _INPUT.fullmatch(name):
                shape = "x".join(map(str, recorded.shape))
                yield Check(group, name, shape, None, "", is_ok=True, note="input")
            elif (ours := self._ours(name, recorded)) is None:
                yield from left_out(group, [name])
            else:
                yield compare_tensors(group, name, ours, recorded, tolerances[name])
        images = [f for f in self._case.get("files", []) if f.endswith(".png")]
        for index, file_name in enumerate(images):
            yield self._image_check(file_name, index)

    # --- the inputs ---

    @property
    def _prompts(self) -> list[str]:
        return _listed(self._case["prompt"])

    @cached_property
    def _size(self) -> Size:
        return parse_reference_size(self._case["image_size"], self._pipeline.sizes)

    @property
    def _has_guidance(self) -> bool:
        return bool(self._case["guidance"] > 1)

    @cached_property
    def _rows(self) -> list[ImageSequence]:
        """Return [conditional x B; unconditional x B], each of its own length."""
        pipeline = replace(self._pipeline, template=self._template)
        pairs = [
            pipeline.guidance_rows(self._prompt(index), None, self._size)
            for index in range(len(self._prompts))
        ]
        return [pair[0] for pair in pairs] + [pair[1] for pair in pairs]

    @cached_property
    def _template(self) -> Template:
        return Template(
            self._pipeline.tokenizer,
            self._case.get("template", "pretrain"),
            self._pipeline.transformer.config.image_base_size,
            parse_control=True,
        )

    def _prompt(self, index: int) -> Prompt:
        return Prompt(
            text=self._prompts[index],
            images=tuple(image.block.grid for image in self._images),
            system_prompt=_pick(self._case.get("system_prompt"), index),
            cot_text=_pick(self._case.get("cot_text"), index),
            drop_think=bool(self._case.get("drop_think", False)),
        )

    @property
    def _images(self) -> Sequence[EmbeddedImage]:
        """Return the input images; a case of text has none."""
        return ()

    @cached_property
    def _padded_rows(self) -> list[ImageSequence]:
        pad = self._pipeline.tokenizer.control_id("<pad>")
        length = max(len(row.ids) for row in self._rows)
        return [replace(r, ids=r.ids + (pad,) * (length - len(r.ids))) for r in self._rows]

    @property
    def _shift(self) -> float:
        return float(self._case.get("flow_shift", self._pipeline.generation.flow_shift))

    @cached_property
    def _sigmas(self) -> Tensor:
        return shifted_sigmas(int(self._case["steps"]), self._shift)

    # --- what we compute ---

    @cached_property
    def _run(self) -> tuple[list[Tensor], list[Tensor], Probe]:
        """Generate from the recorded noise; return velocities, latents and layer inputs by step."""
        count = len(self._prompts)
        transformer, solver = self._pipeline.transformer, Euler(tuple(self._sigmas.tolist()))
        noise_BCYX = self._recorded["latents_init"].float().to(transformer.device)
        probes = [Probe() for _ in range(count)]
        runs = [
            start_run(
                transformer,
                self._rows[i::count] if self._has_guidance else self._rows[i : i + 1],
                Trajectory(solver, noise_BCYX[i : i + 1]),
                float(self._case["guidance"]),
                probes[i],
                PromptKVCache(transformer, self._images),
            )
            for i in range(count)
        ]
        steps: dict[int, list[Denoised]] = {}
        for done in denoise(transformer, runs):
            steps.setdefault(done.step, []).append(done)
        cfg = transformer.mesh.cfg if self._has_guidance else SINGLE.cfg
        velocities = [_by_branch([d.velocity_BCYX for d in steps[i]]) for i in sorted(steps)]
        latents = [torch.cat([d.latent_BCYX for d in steps[i]]) for i in sorted(steps)]
        probe = Probe(
            inputs={i: _by_branch([cfg.all_gather(p.inputs[i], 0) for p in probes]) for i in steps},
            outputs={
                i: _by_branch([cfg.all_gather(p.outputs[i], 0) for p in probes]) for i in steps
            },
        )
        return velocities, latents, probe

    @cached_property
    def _full(self) -> dict[str, Tensor]:
        rows = self._padded_rows if self._has_guidance else self._padded_rows[: len(self._prompts)]
        _, _, probe = self._run
        return trace_full_sequence(self._pipeline.transformer, rows, probe.inputs[0], self._images)

    @cached_property
    def _rgb(self) -> Tensor:
        with torch.inference_mode():
            transformer = self._pipeline.transformer
            return transformer.vae.decode(self._run[1][-1], transformer.mesh.whole)

    def _ours(self, name: str, recorded: Tensor) -> Tensor | None:
        """Return our value for a recorded tensor, or None for an unknown name."""
        if match := _STEP.fullmatch(name):
            return self._step_tensor(match[1], int(match[2]), recorded)
        if name.startswith("layer"):
            traced = self._full.get(name.removesuffix("_step0"))
            return None if traced is None else traced[: recorded.shape[0]]
        if name == "vae_in":
            return self._pipeline.transformer.vae.unscale(self._run[1][-1]).unsqueeze(2)
        if name == "vae_image":
            return self._rgb.unsqueeze(2)
        if name == "sigmas":
            return self._sigmas
        if name == "timesteps":
            return timesteps_of(self._sigmas)
        return self._layout_tensor(name, recorded.shape[0])

    def _step_tensor(self, kind: str, step: int, recorded: Tensor) -> Tensor | None:
        velocities, latents, probe = self._run
        if step >= len(latents):
            return None
        if kind in ("pred", "latents"):
            return (velocities if kind == "pred" else latents)[step]
        if step == 0:
            return self._full[f"{kind}_step0"][: recorded.shape[0]]
        source = probe.inputs if kind == "inputs_embeds" else probe.outputs
        return source[step][: recorded.shape[0]]

    def _layout_tensor(self, name: str, num_rows: int) -> Tensor | None:
        rows = self._padded_rows[:num_rows]
        length = len(rows[0].ids)
        if name == "token_ids":
            return torch.tensor([row.ids for row in rows])
        if name in ("image_mask", "gen_image_mask"):
            image = self._pipeline.tokenizer.control_id("<img>")
            ids_BS = torch.tensor([row.ids for row in rows])
            positions_S = torch.arange(length)
            inside_BS = torch.stack(
                [(positions_S >= r.image_start) & (positions_S < r.image_stop) for r in rows]
            )
            return inside_BS & (ids_BS == image)
        if name in ("timestep_index", "gen_timestep_index"):
            return torch.tensor([[row.prefix_length] for row in rows])
        if name == "position_ids_step1":
            return torch.tensor([list(row.step_indices) for row in rows])
        if name in ("attn_mask", "attn_mask_rowsum", "attn_mask_colsum"):
            masks_BSS = torch.stack([visibility_mask(sequence_spans(row), length) for row in rows])
            if name == "attn_mask":
                return masks_BSS.unsqueeze(1)
            return masks_BSS.sum(-1 if name == "attn_mask_rowsum" else -2)
        if name == "attn_mask_step1_rowsum":
            return torch.stack([_visible_in_step(row) for row in rows])
        if name in ("rope_cos", "rope_sin"):
            config = self._pipeline.transformer.config
            tables = [
                build_rotary_table(grid_positions(r, length), config.head_dim, config.rope_theta)
                for r in rows
            ]
            return torch.stack([t.cos_SH if name == "rope_cos" else t.sines() for t in tables])
        return None

    # --- values and images ---

    def _value_checks(self) -> Iterator[Check]:
        stride = self._pipeline.transformer.config.pixels_per_token
        slices = [[[row.image_start, row.image_stop]] for row in self._rows]
        ours: dict[str, object] = {
            "bucket_height": self._size.height_px,
            "bucket_width": self._size.width_px,
            "token_height": self._size.height_px // stride,
            "token_width": self._size.width_px // stride,
            "ratio_index": self._size.index,
            "seq_len": len(self._padded_rows[0].ids),
            "image_slices": slices,
        }
        for name in ours.keys() & self._case.keys():
            yield compare_values(self._name, name, ours[name], self._case[name])

    def _image_check(self, file_name: str, index: int) -> Check:
        recorded_yx3 = self._recording.read_image(file_name)
        return compare_images(self._name, file_name, to_uint8(self._rgb)[index], recorded_yx3)


def _by_branch(images: Sequence[Tensor]) -> Tensor:
    """Return [conditional x B; unconditional x B] from each image's own rows."""
    return torch.stack(list(images), dim=1).flatten(0, 1)


def _visible_in_step(row: ImageSequence) -> Tensor:
    counts: list[int] = []
    for span in step_spans(row):
        counts += [row.prefix_length + span.stop] * (span.stop - span.start)
    return torch.tensor(counts)


def _listed(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _pick(value: str | Sequence[str] | None, index: int) -> str | None:
    return value if value is None or isinstance(value, str) else value[index]
