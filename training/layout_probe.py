"""Linear probes for the layout of a scene, two thirds up the transformer while it trains.

From the flow loss alone a small model learns last of all where things belong: after 50,000 images
it generated known objects beside their places. The layout of a painted scene is known, so linear
probes on the residual stream classify every image token, at every noise level. At high noise the
only sources are the caption and the token's place in the image, and the later layers generate the
image from the same features. The probes are no part of the checkpoint.
Source of the idea: Yu et al. 2024 (arXiv 2410.06940), with labels where they have features.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.backgrounds import BACKGROUNDS
from training.scenes import COLOURS, KINDS, SIDE_TOKENS, Scene

# Share of the layers that run before the probes.
PROBED_DEPTH = 2 / 3
# Classes of the object, of its colour, of the token within it, and of the background.
NUM_CLASSES = (
    len(KINDS) + 1,
    len(COLOURS) + 1,
    sum(side * side for side in SIDE_TOKENS.values()) + 1,
    len(BACKGROUNDS),
)


class LayoutProbe(nn.Module):
    """One linear classifier each for object, colour, token and background."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.answers = nn.Linear(hidden_size, sum(NUM_CLASSES))
        nn.init.zeros_(self.answers.weight)

    def forward(self, features_BSD: Tensor, targets_BS4: Tensor) -> Tensor:
        """Return the mean cross entropy of the four classifiers."""
        logits_BSZ: Tensor = self.answers(self.norm(features_BSD))
        parts = logits_BSZ.float().flatten(0, 1).split(NUM_CLASSES, dim=-1)
        losses = [
            F.cross_entropy(part, targets_BS4[..., index].flatten())
            for index, part in enumerate(parts)
        ]
        return torch.stack(losses).mean()


def probe_targets(scenes: Sequence[Scene]) -> Tensor:
    """Return the classes of each token of scenes of one grid. Shapes: -> targets_BS4."""
    return torch.stack([_targets(scene) for scene in scenes]).flatten(1, 2)


def _targets(scene: Scene) -> Tensor:
    targets_YX4 = torch.zeros(scene.rows, scene.columns, 4, dtype=torch.int64)
    targets_YX4[..., 3] = BACKGROUNDS.index(scene.background)
    first_part = {}
    count = 1
    for size, side in SIDE_TOKENS.items():
        first_part[size] = count
        count += side * side
    for thing in scene.things:
        rows = slice(thing.row, thing.row + thing.side)
        columns = slice(thing.column, thing.column + thing.side)
        targets_YX4[rows, columns, 0] = 1 + KINDS.index(thing.kind)
        targets_YX4[rows, columns, 1] = 1 + COLOURS.index(thing.colour) if thing.colour else 0
        parts = torch.arange(thing.side**2).view(thing.side, thing.side)
        targets_YX4[rows, columns, 2] = first_part[thing.size] + parts
    return targets_YX4
