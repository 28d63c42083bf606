"""The denoising loop: embed, run the layers or reuse residuals, apply guidance, step the solver.

It runs any number of images of one size together. Each has its own solver, history, step cache
and guidance, and may be at its own step; layer calls that coincide are run as one batch. The
result of an image never depends on its neighbours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cache.no_cache import NoCache
from cache.protocol import (
    Evaluation,
    LayerCall,
    RunFirstBlock,
    RunRemainingBlocks,
    StepCache,
    StepContext,
)
from model.attention import AttentionGroup
from model.kv_cache import PromptKVCache, build_attention_group, merge_groups
from model.mesh import SINGLE, RankGroup
from model.sequence import ImageSequence
from model.transformer import HunyuanImage
from pipeline.guidance import Guidance
from pipeline.guidance_plan import PLAIN_GUIDANCE, GuidancePlan
from pipeline.step_cache import list_reused_steps
from schedulers.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class ImageRun:
    """One image being generated.

    `groups` has an entry for each row that this process runs at a guided step: the conditional row
    and the unconditional one; or one of the two, with CFG parallelism over the ranks `cfg`.
    `conditional` is the row of a step without guidance: both ranks run it then, which takes no
    longer than one that waits. Each is a group of its own, as if alone in a batch.
    """

    groups: tuple[AttentionGroup, ...]
    conditional: tuple[AttentionGroup, ...]
    trajectory: Trajectory
    step_cache: StepCache
    guidance: Guidance
    cfg: RankGroup = SINGLE.cfg

    @property
    def step_groups(self) -> tuple[AttentionGroup, ...]:
        """Return the rows that this process runs at the present step."""
        is_guided = self.guidance.has_unconditional(self.trajectory.step)
        return self.groups if is_guided else self.conditional

    @property
    def num_step_rows(self) -> int:
        """Return how many rows all processes together run at the present step."""
        return self.guidance.count_rows(self.trajectory.step)

    @property
    def grid(self) -> tuple[int, int]:
        """Return the size (Y, X) of the latent grid."""
        height, width = self.trajectory.latent_BCYX.shape[-2:]
        return height, width

    @property
    def next_sigma(self) -> float:
        """Return the noise level at the end of the present step."""
        return self.trajectory.sigmas[self.trajectory.step + 1]

    def is_reused(self, step: int) -> bool:
        """Return whether the step cache stood in for the layers at a step that is done."""
        return step in list_reused_steps(self.step_cache)[-1:]

    @property
    def context(self) -> StepContext:
        trajectory = self.trajectory
        return StepContext(
            step=trajectory.step,
            num_steps=trajectory.num_steps,
            evaluation=trajectory.evaluation,
            sigma=trajectory.query.sigma,
        )


@torch.inference_mode()
def start_run(
    transformer: HunyuanImage,
    rows: Sequence[ImageSequence],
    trajectory: Trajectory,
    guidance: float,
    step_cache: StepCache | None = None,
    prompt_cache: PromptKVCache | None = None,
    plan: GuidancePlan = PLAIN_GUIDANCE,
) -> ImageRun:
    """Prefill the prompts of one image and return its run, at the trajectory's noise.

    `rows` are the conditional and, with guidance, the unconditional one. Without a step cache
    every layer runs at every step. Prompts in `prompt_cache` are not prefilled again, others are
    added to it.
    """
    cfg = transformer.mesh.cfg if len(rows) > 1 else SINGLE.cfg
    guides = Guidance(guidance, plan, trajectory.sigmas, has_pair=len(rows) > 1)
    prompt_cache = prompt_cache or PromptKVCache(transformer)
    is_ours = [cfg.size == 1 or row == cfg.rank for row in range(len(rows))]
    is_ours[0] |= len(rows) == 1 or guides.num_unguided_steps > 0
    prefilled = {
        row: build_attention_group(prompt_cache, transformer, rows[row])
        for row in range(len(rows))
        if is_ours[row]
    }
    groups = prefilled.values() if cfg.size == 1 else (prefilled[cfg.rank],)
    conditional = (prefilled[0],) if 0 in prefilled else ()
    return ImageRun(tuple(groups), conditional, trajectory, step_cache or NoCache(), guides, cfg)


@dataclass(frozen=True, slots=True)
class Denoised:
    """A finished step: which image, the latent after it, and the last evaluation's velocities.

    Shapes: latent_BCYX of one image, velocity_BCYX of its rows, guided_BCYX the one they make.
    """

    image: int
    step: int
    latent_BCYX: Tensor
    velocity_BCYX: Tensor
    guided_BCYX: Tensor


@torch.inference_mode()
def estimate_image(run: ImageRun, done: Denoised) -> Tensor:
    """Return the latent of the image that a finished step points to.

    On the straight path of a flow, x(sigma) = image + sigma * velocity. Shapes: -> latent_BCYX.
    """
    sigma = run.trajectory.sigmas[done.step + 1]
    return done.latent_BCYX.float() - sigma * done.guided_BCYX


@torch.inference_mode()
def denoise(transformer: HunyuanImage, runs: Sequence[ImageRun]) -> Iterator[Denoised]:
    """Denoise images to the last step of each; yield after every finished step of every image.

    Raises:
        ValueError: the images have different sizes.
    """
    if len({run.grid for run in runs}) > 1:
        raise ValueError(f"images of different sizes in one batch: {[r.grid for r in runs]}")
    while active := [i for i, run in enumerate(runs) if not run.trajectory.is_done]:
        steps = [runs[i].trajectory.step for i in active]
        velocities = evaluate(transformer, [runs[i] for i in active])
        for i, step, velocity_BCYX in zip(active, steps, velocities, strict=True):
            trajectory, query = runs[i].trajectory, runs[i].trajectory.query
            guided_BCYX = runs[i].guidance.combine(
                step, query.sigma, query.latent_BCYX, velocity_BCYX
            )
            if trajectory.advance(guided_BCYX):
                yield Denoised(i, step, trajectory.latent_BCYX, velocity_BCYX, guided_BCYX)


def evaluate(transformer: HunyuanImage, runs: Sequence[ImageRun]) -> list[Tensor]:
    """Return the velocities of each run's rows at the query of its trajectory."""
    latent_BCYX = torch.cat([run.trajectory.query.latent_BCYX for run in runs])
    device = latent_BCYX.device
    timestep_B = 1000.0 * numbers_on([run.trajectory.query.sigma for run in runs], device)
    # The rows of an image start from the same latent: embed once, then repeat.
    embedded_BSD = transformer.embed_step(
        latent_BCYX,
        timestep_B,
        guidance_B=numbers_on([run.guidance.scale for run in runs], device),
        next_timestep_B=1000.0 * numbers_on([run.next_sigma for run in runs], device),
    )
    evaluations = [
        run.step_cache.evaluate(run.context, x_BSD.unsqueeze(0).repeat(len(run.step_groups), 1, 1))
        for run, x_BSD in zip(runs, embedded_BSD, strict=True)
    ]
    out_BSD = torch.cat(run_evaluations(transformer, runs, evaluations))
    num_rows = [len(run.step_groups) for run in runs]
    timestep_of_row_B = torch.cat(
        [time_1.expand(count) for time_1, count in zip(timestep_B.split(1), num_rows, strict=True)]
    )
    velocity_BCYX = transformer.predict_velocity(out_BSD, timestep_of_row_B, runs[0].grid)
    # Without guidance every rank has the same row; all take the first one's, to the bit.
    return [
        run.cfg.all_gather(rows_BCYX, dim=0)[: run.num_step_rows]
        for run, rows_BCYX in zip(runs, velocity_BCYX.split(num_rows), strict=True)
    ]


def numbers_on(values: Sequence[float], device: torch.device) -> Tensor:
    """Return float32 numbers as a tensor, filled in on the device: a copy would wait for it."""
    return torch.cat([torch.full((1,), value, device=device) for value in values])


def run_evaluations(
    transformer: HunyuanImage, runs: Sequence[ImageRun], evaluations: Sequence[Evaluation]
) -> list[Tensor]:
    """Return each run's output of the layers; equal layer calls are run as one batch."""
    outputs: dict[int, Tensor] = {}
    calls: dict[int, LayerCall] = {}

    def resume(index: int, result_BSD: Tensor | None) -> None:
        """Send an evaluation the result of its call, and note its next call or its output."""
        calls.pop(index, None)
        try:
            calls[index] = evaluations[index].send(result_BSD)  # type: ignore[arg-type]
        except StopIteration as e:
            outputs[index] = e.value

    for index in range(len(runs)):
        resume(index, None)
    for kind, start, stop in ((RunFirstBlock, 0, 1), (RunRemainingBlocks, 1, None)):
        members = [index for index, call in calls.items() if isinstance(call, kind)]
        if members:
            groups = [runs[index].step_groups for index in members]
            inputs = [calls[index].x_BSD for index in members]
            results = run_rows(transformer, groups, inputs, start, stop)
            for index, result_BSD in zip(members, results, strict=True):
                if kind is RunRemainingBlocks:
                    runs[index].guidance.num_rows += runs[index].num_step_rows
                resume(index, result_BSD)
    return [outputs[index] for index in range(len(runs))]


def run_rows(
    transformer: HunyuanImage,
    groups: Sequence[tuple[AttentionGroup, ...]],
    inputs: Sequence[Tensor],
    start: int,
    stop: int | None,
) -> list[Tensor]:
    """Run the rows of several images through the layers; rows of the same prompt attend together.

    Shapes: each input and output is the x_BSD of one image's rows.
    """
    flat = [group for image_groups in groups for group in image_groups]
    x_BSD = torch.cat(list(inputs))
    # Neighbours are merged, so rows of the same prompt are put side by side; in the same order on
    # every rank.
    first_row: dict[int, int] = {}
    for row, group in enumerate(flat):
        first_row.setdefault(id(group.past_kv), row)
    order = sorted(range(len(flat)), key=lambda row: (first_row[id(flat[row].past_kv)], row))
    merged = merge_groups([flat[row] for row in order])
    if order == list(range(len(flat))):
        out_BSD = transformer.run_layers(x_BSD, merged, start, stop)
    else:  # by slices: an index would be copied to the device, which waits for it
        sorted_BSD = torch.cat([x_BSD[row : row + 1] for row in order])
        rows = transformer.run_layers(sorted_BSD, merged, start, stop).split(1)
        out_BSD = torch.cat([rows[order.index(row)] for row in range(len(order))])
    return list(out_BSD.split([len(image_groups) for image_groups in groups]))
