"""Patch embedding and final layer: latent grid to tokens and back, by convolutions.

Time enters here, through the residual block's scale and shift, and not in the transformer layers.
"""

from torch import Tensor, nn

from model.config import ModelConfig

# Source: patch_embed/final_layer of the reference use torch's default, unlike the VAE's 1e-6.
GROUP_NORM_EPS = 1e-5


class TimedResBlock(nn.Module):
    """Residual block whose second norm is scaled and shifted by the time embedding.

    Shapes: x_BCYX, time_BD -> x_BZYX.
    """

    def __init__(self, channels: int, out_channels: int, time_width: int, groups: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(groups, channels, eps=GROUP_NORM_EPS),
            nn.SiLU(),
            nn.Conv2d(channels, out_channels, 3, padding=1),
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_width, 2 * out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, out_channels, eps=GROUP_NORM_EPS),
            nn.SiLU(),
            nn.Identity(),  # dropout in training; keeps the checkpoint's numbering
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.skip_connection = (
            nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
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

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        inner, width = config.patch_hidden_size, config.hidden_size
        self.model = nn.ModuleList(
            [
                nn.Conv2d(config.vae.latent_channels, inner, 3, padding=1),
                TimedResBlock(inner, width, width, config.norm_num_groups),
            ]
        )

    def forward(self, latent_BCYX: Tensor, time_BD: Tensor) -> Tensor:
        convolution, block = self.model
        return block(convolution(latent_BCYX), time_BD).flatten(2).transpose(1, 2)


class FinalLayer(nn.Module):
    """Image tokens to the predicted velocity.

    Shapes: x_BSD, time_BD, grid (Y, X) -> velocity_BCYX float32.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        inner, width, groups = config.patch_hidden_size, config.hidden_size, config.norm_num_groups
        self.model = nn.ModuleList(
            [
                TimedResBlock(width, inner, width, groups),
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
