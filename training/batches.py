"""Training batches: scenes of one grid, with captions of about one length, as ids and latents."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.template import Prompt, Section, Template
from model.tokenizer import Tokenizer
from training.captions import Caption, choose_shape, describe_facts, write_caption
from training.filler import choose_length, hide_facts, write_prose
from training.forward import Sequences
from training.latents import (
    COUNTS,
    OFFERED_GRIDS,
    SMALL_GRID,
    SQUARE_GRID,
    Grid,
    load_latents,
    train_scene,
)
from training.layout_probe import probe_targets
from training.scenes import Scene, seed_of

# Share of rows whose prompt is dropped, and share of wordy steps whose prose names no object.
DROPPED = 0.1
UNKNOWN = 0.25
IGNORED = -100  # target without loss, as cross_entropy has it


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What kind of batch a step has; equal on all processes, so that they take equally long."""

    grid: Grid
    is_wordy: bool
    num_characters: int


@dataclass(frozen=True, slots=True)
class Batch:
    """One process's part of a step.

    `first_ratio` is the id from which on all tokens are shapes.
    Shapes: latent_BCYX float32, targets_BS int64: the next token at each position, or IGNORED,
    layout_BS4 int64 for the layout probe.
    """

    sequences: Sequences
    latent_BCYX: Tensor
    targets_BS: Tensor
    layout_BS4: Tensor
    first_ratio: int


def plan_step(
    step: int, small_share: float, wordy_share: float, square_share: float = 0.3
) -> StepPlan:
    """Return the plan of a step, which depends on nothing but the arguments."""
    rng = random.Random(seed_of("step", step))
    if rng.random() < small_share:
        return StepPlan(SMALL_GRID, is_wordy=False, num_characters=0)
    grid = SQUARE_GRID if rng.random() < square_share else rng.choice(OFFERED_GRIDS)
    is_wordy = rng.random() < wordy_share
    return StepPlan(grid, is_wordy, choose_length(rng) if is_wordy else 0)


@dataclass(frozen=True, slots=True)
class _Row:
    """One prompt: its ids, and the target of each."""

    ids: list[int]
    targets: list[int]


def _join(sections: Sequence[Section]) -> list[int]:
    return [token for section in sections for token in section.ids]


def _pad(rows: Sequence[list[int]], value: int) -> Tensor:
    """Return rows as one tensor, filled on the right to the longest. Shapes: -> rows_BS int64."""
    length = max(map(len, rows))
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


class BatchMaker:
    """Reads latents and writes captions. Any batch can be made again from its step and rank."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, token_budget: int) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        self._budget = token_budget
        # A small image is a 512-pixel square, and its size token is that of one.
        self._templates = {
            grid: Template(tokenizer, "pretrain", 512 if grid == SMALL_GRID else 1024)
            for grid in (*OFFERED_GRIDS, SMALL_GRID)
        }

    def make(self, plan: StepPlan, step: int, rank: int) -> Batch:
        """Return the batch of a process: as many rows as fit into the token budget."""
        rng = random.Random(seed_of("batch", step, rank))
        columns, rows = plan.grid
        num_rows = max(2, self._budget // (columns * rows + 24 + plan.num_characters // 4))
        indices = [rng.randrange(COUNTS[plan.grid]) for _ in range(num_rows)]
        latents = load_latents(self._folder, plan.grid)
        latent_BCYX = torch.from_numpy(latents[indices].astype(np.float32))
        scenes = [train_scene(plan.grid, index) for index in indices]
        encoded = [self._encode(scene, plan, rng) for scene in scenes]
        pad = self._tokenizer.control_id("<pad>")
        lengths_B = torch.tensor([len(row.ids) for row in encoded])
        ids_BS = _pad([row.ids for row in encoded], pad)
        return Batch(
            sequences=Sequences(ids_BS, lengths_B, (rows, columns)),
            latent_BCYX=latent_BCYX,
            targets_BS=_pad([row.targets for row in encoded], IGNORED),
            layout_BS4=probe_targets(scenes),
            first_ratio=self._tokenizer.control_id("<img_ratio_0>"),
        )

    def _encode(self, scene: Scene, plan: StepPlan, rng: random.Random) -> _Row:
        """Return the ids before <timestep>, and the target of each.

        The image's shape stands in the ids; the target is the shape that the caption asks
        for, square when it names none: so `auto` is learnt whatever the shapes of the images.
        """
        caption = self._write(scene, plan, rng)
        template = self._templates[plan.grid]
        ratio = self._ratio_index(scene)
        sections = template.image_head(Prompt(text=caption.text), ratio)
        is_dropped = rng.random() < DROPPED
        ids = _join(template.unconditional(sections) if is_dropped else sections)
        targets = [*ids[1:], IGNORED]
        targets[-2] = self._tokenizer.control_id(f"<img_ratio_{caption.ratio_index}>")
        if is_dropped:
            return _Row(ids, [IGNORED] * len(ids))
        if plan.is_wordy:  # a model of the filler is of no use
            targets[:-3] = [IGNORED] * (len(ids) - 3)
        return _Row(ids, targets)

    def _ratio_index(self, scene: Scene) -> int:
        shape = (scene.columns, scene.rows)
        return 16 if shape == SMALL_GRID else 8 + OFFERED_GRIDS.index(shape)

    def _write(self, scene: Scene, plan: StepPlan, rng: random.Random) -> Caption:
        if not plan.is_wordy:
            return write_caption(scene, rng)
        shape, ratio_index = choose_shape(scene, rng)
        opening = f"{shape[0].upper()}{shape[1:]} what follows." if shape else ""
        if rng.random() < UNKNOWN:
            text = " ".join(write_prose(rng, plan.num_characters))
        else:
            text = hide_facts(rng, describe_facts(scene, rng), plan.num_characters)
        return Caption(f"{opening} {text}".strip(), ratio_index)
