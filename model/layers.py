"""Layers that several modules share: RMSNorm, SwiGLU, the shared expert, timestep embedding."""

import math

import torch
from torch import Tensor, nn

from model.fused import add_rms_norm, rms_norm, swiglu

# Width of the sinusoid and its longest period.
# Source: timestep_emb.mlp.0.weight [hidden, 256] in the checkpoint; DDPM's max_period.
TIMESTEP_WIDTH = 256
TIMESTEP_MAX_PERIOD = 10000.0


class RMSNorm(nn.Module):
    """Root-mean-square norm, statistics in float32.

    Shapes: x_BSZ -> x_BSZ, the dtype of x is kept.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x_BSZ: Tensor) -> Tensor:
        return rms_norm(x_BSZ, self.weight, self.eps)


class AddRMSNorm(RMSNorm):
    """Root-mean-square norm of a sum, which it returns too: a residual addition and what follows.

    Shapes: x_BSD, added_BSD -> sum_BSD, normed_BSD.
    """

    def forward(self, x_BSD: Tensor, added_BSD: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return add_rms_norm(x_BSD, added_BSD, self.weight, self.eps)


class SharedExpert(nn.Module):
    """The shared expert: every token passes through it.

    Shapes: x_TD -> x_TD.
    """

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_and_up_proj = nn.Linear(hidden_size, 2 * width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_and_up_proj(x_TD)))


class TimestepEmbedding(nn.Module):
    """Sinusoid of a timestep, then two linear layers.

    Shapes: timestep_B float32 in [0, 1000] -> embedding_BD in the parameters' dtype.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(TIMESTEP_WIDTH, width), nn.GELU(), nn.Linear(width, width)
        )

    def forward(self, timestep_B: Tensor) -> Tensor:
        half = TIMESTEP_WIDTH // 2
        exponents_Z = torch.arange(half, device=timestep_B.device, dtype=torch.float32) / half
        frequencies_Z = torch.exp(-math.log(TIMESTEP_MAX_PERIOD) * exponents_Z)
        angles_BZ = timestep_B.float().unsqueeze(1) * frequencies_Z
        waves_BZ = torch.cat((angles_BZ.cos(), angles_BZ.sin()), dim=-1)
        return self.mlp(waves_BZ.to(next(self.mlp.parameters()).dtype))
