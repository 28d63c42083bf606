"""Two-dimensional rotary position embedding (RoPE)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RotaryTable:
    """Cosines and sines for the positions of some tokens, the sines with the rotation's signs.

    Shapes: cos_SH, signed_sin_SH, float32.
    """

    cos_SH: Tensor
    signed_sin_SH: Tensor  # negative in the first half: x * cos + swapped halves of x * sin
    _copies: dict[torch.device, "RotaryTable"] = field(default_factory=dict, compare=False)

    def sines(self) -> Tensor:
        """Return the sines themselves, as the reference holds them. Shapes: -> sin_SH."""
        negative_SZ, positive_SZ = self.signed_sin_SH.chunk(2, dim=-1)
        return torch.cat((-negative_SZ, positive_SZ), dim=-1)

    def to(self, device: torch.device) -> "RotaryTable":
        """Return the table on a device; a copy is made once."""
        if device == self.cos_SH.device:
            return self
        if device not in self._copies:
            self._copies[device] = RotaryTable(
                self.cos_SH.to(device), self.signed_sin_SH.to(device)
            )
        return self._copies[device]


def build_rotary_table(positions_S2: Tensor, head_dim: int, theta: float) -> RotaryTable:
    """Return the table for integer (y, x) positions.

    Frequencies alternate: even ones turn with y, odd ones with x. Text has y = x, for which this
    is ordinary RoPE.

    Source: HunyuanImage 3.0 technical report, section on generalized causal 2D RoPE.
    """
    exponents_Z = (
        torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions_S2.device) / head_dim
    )
    frequencies_Z2 = (1.0 / theta**exponents_Z).unflatten(0, (head_dim // 4, 2))
    angles_SZ = (positions_S2.float().unsqueeze(1) * frequencies_Z2).flatten(1)
    angles_SH = angles_SZ.repeat(1, 2)
    low_SZ, high_SZ = angles_SH.sin().chunk(2, dim=-1)
    return RotaryTable(angles_SH.cos(), torch.cat((-low_SZ, high_SZ), dim=-1))
