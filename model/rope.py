"""Two-dimensional rotary position embedding (RoPE)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RotaryTable:
    """Cosines and sines for the positions of some tokens.

    Shapes: cos_SH, sin_SH, float32.
    """

    cos_SH: Tensor
    sin_SH: Tensor

    def to(self, device: torch.device) -> "RotaryTable":
        return RotaryTable(self.cos_SH.to(device), self.sin_SH.to(device))

    def rotate(self, x_BNSH: Tensor) -> Tensor:
        """Rotate queries or keys; the result is float32 for any input."""
        x_BNSH = x_BNSH.float()
        low_BNSZ, high_BNSZ = x_BNSH.chunk(2, dim=-1)
        turned_BNSH = torch.cat((-high_BNSZ, low_BNSZ), dim=-1)
        return torch.addcmul(x_BNSH * self.cos_SH, turned_BNSH, self.sin_SH)


def build_rotary_table(positions_S2: Tensor, head_dim: int, theta: float) -> RotaryTable:
    """Return the table for integer (y, x) positions.

    Frequencies alternate: even ones turn with y, odd ones with x. Text has y = x, for which this
    is ordinary RoPE.

    Source: HunyuanImage 3.0 technical report, section on generalized causal 2D RoPE.
    """
    exponents_Z = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies_Z2 = (1.0 / theta**exponents_Z).unflatten(0, (head_dim // 4, 2))
    angles_SZ = (positions_S2.float().unsqueeze(1) * frequencies_Z2).flatten(1)
    angles_SH = angles_SZ.repeat(1, 2)
    return RotaryTable(angles_SH.cos(), angles_SH.sin())
