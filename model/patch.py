"""Patch embedding and final layer: latent grid to tokens and back, by convolutions.

Time enters here, through the residual block's scale and shift, and not in the transformer layers.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.mesh import SINGLE, RankGroup

# Source: patch_embed/final_layer of the reference use torch's default, unlike the VAE's 1e-6.
GROUP_NORM_EPS = 1e-5


class SplitConv2d(nn.Conv2d):
    """Convolution whose output channels are computed in equal parts by the tensor ranks.

    Every rank holds all weights, a percent of a layer's experts at most, and uses its part of them.

    Shapes: x_BCYX -> x_BZYX.
    """

    def __init__(self, channels: int, out_channels: int, size: int, ranks: RankGroup) -> None:
        super().__init__(channels, out_channels, size, padding=size // 2)
        self._ranks = ranks if out_channels % ranks.size == 0 else SINGLE.tensor

    def forward(self, x_BCYX: Tensor) -> Tensor:
        if self._ranks.size == 1:
            return super().forward(x_BCYX)
        assert self.bias is not None
        count = self.out_channels // self._ranks.size
        part = slice(self._ranks.rank * count, (self._ranks.rank + 1) * count)
        part_BZYX = F.conv2d(x_BCYX, self.weight[part], self.bias[part], padding=self.padding)
        return self._ranks.all_gather(part_BZYX, dim=1)


class TimedResBlock(nn.Module):
    """Residual block whose second norm is scaled and shifted by the time embedding.

    Shapes: x_BCYX, time_BD -> x_BZYX.
    """

    def __init__(
        self, channels: int, out_channels: int, config: ModelConfig, ranks: RankGroup
    ) -> None:
        super().__init__()
        groups, time_width = config.norm_num_groups, config.hidden_size
        self.in_layers = nn.Sequential(
            nn.GroupNorm(groups, channels, eps=GROUP_NORM_EPS),
            nn.SiLU(),
            SplitConv2d(channels, out_channels, 3, ranks),
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_width, 2 * out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, out_channels, eps=GROUP_NORM_EPS),
            nn.SiLU(),
            nn.Identity(),  # dropout in training; keeps the checkpoint's numbering
            SplitConv2d(out_channels, out_channels, 3, ranks),
        )
        self.skip_connection = (
            nn.Identity()
            if channels == out_channels
            else SplitConv2d(channels, out_channels, 1, ranks)
        )

    def forward(self, x_BCYX: Tensor, time_BD: Tensor) -> Tensor:
        hidden_BZYX = self.in_layers(x_BCYX)
        scale_BZ, shift_BZ = self.emb_layers(time_BD).chunk(2, dim=1)
        hidden_BZYX = self.out_layers[0](hidden_BZYX)
        hidden_BZYX = hidden_BZYX * (1 + scale_BZ[..., None, None]) + shift_BZ[..., None, None]
        return self.skip_connection(x_BCYX) + self.out_layers[1:](hidden_BZYX)


class PatchEmbed(nn.Module):
    """Latent grid to image tokens.

    Shapes: latent_BCYX, time_BD -> x_BSD with S = Y * X, row by row.
    """

    def __init__(self, config: ModelConfig, ranks: RankGroup) -> None:
        super().__init__()
        inner, width = config.patch_hidden_size, config.hidden_size
        self.model = nn.ModuleList(
            [
                nn.Conv2d(config.vae.latent_channels, inner, 3, padding=1),
                TimedResBlock(inner, width, config, ranks),
            ]
        )

    def forward(self, latent_BCYX: Tensor, time_BD: Tensor) -> Tensor:
        convolution, block = self.model
        return block(convolution(latent_BCYX), time_BD).flatten(2).transpose(1, 2)


class FinalLayer(nn.Module):
    """Image tokens to the predicted velocity.

    Shapes: x_BSD, time_BD, grid (Y, X) -> velocity_BCYX float32.
    """

    def __init__(self, config: ModelConfig, ranks: RankGroup) -> None:
        super().__init__()
        inner, width, groups = config.patch_hidden_size, config.hidden_size, config.norm_num_groups
        self.model = nn.ModuleList(
            [
                TimedResBlock(width, inner, config, ranks),
                nn.Sequential(
                    nn.GroupNorm(groups, inner, eps=GROUP_NORM_EPS),
                    nn.SiLU(),
                    nn.Conv2d(inner, config.vae.latent_channels, 3, padding=1),
                ),
            ]
        )

    def forward(self, x_BSD: Tensor, time_BD: Tensor, grid: tuple[int, int]) -> Tensor:
        block, head = self.model
        x_BDYX = x_BSD.transpose(1, 2).unflatten(2, grid)
        return head(block(x_BDYX, time_BD)).float()
