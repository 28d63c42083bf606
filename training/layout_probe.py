"""What an image token shows, asked for half-way up the transformer while it trains.

From the flow loss alone a small model learns last of all where things belong: it drew known
objects beside their places after 50,000 images. Painted scenes come with the answer, so linear
probes on the residual stream ask every image token for it, at every noise level. At high noise the
only way to answer is to read the caption and one's own place in the image, which is what the
later layers then draw from. The probes are no part of the checkpoint.
Source of the idea: Yu et al. 2024 (arXiv 2410.06940), with labels where they have features.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.backgrounds import BACKGROUNDS
from training.scenes import COLOURS, KINDS, SIDE_TOKENS, Scene

# Share of the layers that are through when the probes look.
PROBED_DEPTH = 2 / 3
# Questions: which object, which of its colours, which of its tokens, which background.
NUM_ANSWERS = (
    len(KINDS) + 1,
    len(COLOURS) + 1,
    sum(side * side for side in SIDE_TOKENS.values()) + 1,
    len(BACKGROUNDS),
)


class LayoutProbe(nn.Module):
    """One linear classifier per question."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.answers = nn.Linear(hidden_size, sum(NUM_ANSWERS))
        nn.init.zeros_(self.answers.weight)

    def forward(self, features_BSD: Tensor, answers_BS4: Tensor) -> Tensor:
        """Return the mean surprise at the right answers, over all questions."""
        logits_BSA: Tensor = self.answers(self.norm(features_BSD))
        parts = logits_BSA.float().flatten(0, 1).split(NUM_ANSWERS, dim=-1)
        surprises = [
            F.cross_entropy(part, answers_BS4[..., question].flatten())
            for question, part in enumerate(parts)
        ]
        return torch.stack(surprises).mean()


def answer_scenes(scenes: Sequence[Scene]) -> Tensor:
    """Return the right answers for each token of scenes of one grid. Shapes: -> answers_BS4."""
    return torch.stack([_answer(scene) for scene in scenes]).flatten(1, 2)


def _answer(scene: Scene) -> Tensor:
    answers_YX4 = torch.zeros(scene.rows, scene.columns, 4, dtype=torch.int64)
    answers_YX4[..., 3] = BACKGROUNDS.index(scene.background)
    first_part = {}
    count = 1
    for size, side in SIDE_TOKENS.items():
        first_part[size] = count
        count += side * side
    for thing in scene.things:
        rows = slice(thing.row, thing.row + thing.side)
        columns = slice(thing.column, thing.column + thing.side)
        answers_YX4[rows, columns, 0] = 1 + KINDS.index(thing.kind)
        answers_YX4[rows, columns, 1] = 1 + COLOURS.index(thing.colour) if thing.colour else 0
        parts = torch.arange(thing.side**2).view(thing.side, thing.side)
        answers_YX4[rows, columns, 2] = first_part[thing.size] + parts
    return answers_YX4
