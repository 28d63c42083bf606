"""The convolutional autoencoder between pixels and latents: 3D, of which an image is one slice.

A latent has one time slice; the decoder's temporal levels turn it into `temporal_factor` frames,
of which the last is the image. Group norms run over all frames, so none can be left out.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import VaeConfig
from model.mesh import SINGLE, Group
from model.row_parallel import WHOLE, RowShard

# Source: AutoencoderKLConv3D of the reference; patch_embed's norms have 1e-5.
NORM_EPS = 1e-6
# Range of the log-variance of the encoder. Source: DiagonalGaussianDistribution, latent diffusion.
LOGVAR_RANGE = (-30.0, 20.0)


class Conv3d(nn.Conv3d):
    """3D convolution that does not multiply the zero padding of a single time slice.

    Shapes: x_BCtyx -> x_BZtyx.
    """

    def forward(self, x_BCtyx: Tensor) -> Tensor:
        if x_BCtyx.shape[2] == 1 and self.kernel_size[0] == 3:
            weight = self.weight[:, :, 1]
            return F.conv2d(x_BCtyx.squeeze(2), weight, self.bias, padding=1).unsqueeze(2)
        return super().forward(x_BCtyx)


def _conv(channels: int, out_channels: int, kernel: int = 3) -> Conv3d:
    return Conv3d(channels, out_channels, kernel, padding=kernel // 2)


class ResnetBlock(nn.Module):
    """Two normed convolutions beside a shortcut. Shapes: x_BCtyx -> x_BZtyx."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        self.conv1 = _conv(channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=NORM_EPS)
        self.conv2 = _conv(out_channels, out_channels)
        self.nin_shortcut = None
        if channels != out_channels:
            self.nin_shortcut = _conv(channels, out_channels, 1)

    def forward(self, x_BCtyx: Tensor, slab: RowShard = WHOLE) -> Tensor:
        hidden = slab.conv(self.conv1, F.silu(slab.norm(self.norm1, x_BCtyx)))
        hidden = slab.conv(self.conv2, F.silu(slab.norm(self.norm2, hidden)))
        return hidden + (x_BCtyx if self.nin_shortcut is None else self.nin_shortcut(x_BCtyx))


class AttentionBlock(nn.Module):
    """One head over all positions of all frames. Shapes: x_BCtyx -> x_BCtyx."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        self.q, self.k, self.v, self.proj_out = (_conv(channels, channels, 1) for _ in range(4))

    def forward(self, x_BCtyx: Tensor) -> Tensor:
        normed = self.norm(x_BCtyx)
        q_B1SC, k_B1SC, v_B1SC = (
            projection(normed).flatten(2).transpose(1, 2).unsqueeze(1)
            for projection in (self.q, self.k, self.v)
        )
        out_B1SC = F.scaled_dot_product_attention(q_B1SC, k_B1SC, v_B1SC)
        return x_BCtyx + self.proj_out(out_B1SC.squeeze(1).transpose(1, 2).reshape(x_BCtyx.shape))


class MiddleBlock(nn.Module):
    """The coarsest level. Shapes: x_BCtyx -> x_BCtyx."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttentionBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x_BCtyx: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x_BCtyx)))


class Downsample(nn.Module):
    """Space (and time) to channels, twice: learnt, and as plain means for a shortcut.

    Shapes: x_BCtyx -> x_BZtyx with y and x (and t) halved.
    """

    def __init__(self, channels: int, out_channels: int, is_temporal: bool) -> None:
        super().__init__()
        self.strides = (2 if is_temporal else 1, 2, 2)
        factor = 8 if is_temporal else 4
        self.conv = _conv(channels, out_channels // factor)
        self._group_size = factor * channels // out_channels

    def forward(self, x_BCtyx: Tensor) -> Tensor:
        learnt = _space_to_channels(self.conv(x_BCtyx), self.strides)
        plain = _space_to_channels(x_BCtyx, self.strides)
        return learnt + plain.unflatten(1, (-1, self._group_size)).mean(dim=2)


class Upsample(nn.Module):
    """Channels to space (and time), twice: learnt, and as plain repeats for a shortcut.

    Shapes: x_BCtyx -> x_BZtyx with y and x (and t) doubled.
    """

    def __init__(self, channels: int, out_channels: int, is_temporal: bool) -> None:
        super().__init__()
        self.strides = (2 if is_temporal else 1, 2, 2)
        factor = 8 if is_temporal else 4
        self.conv = _conv(channels, out_channels * factor)
        self._repeats = factor * out_channels // channels

    def forward(self, x_BCtyx: Tensor, slab: RowShard = WHOLE) -> Tensor:
        learnt = _channels_to_space(slab.conv(self.conv, x_BCtyx), self.strides)
        plain = x_BCtyx.repeat_interleave(self._repeats, dim=1)
        return learnt + _channels_to_space(plain, self.strides)


def _space_to_channels(x_BCtyx: Tensor, strides: tuple[int, int, int]) -> Tensor:
    """Move each t x y x x cell of `strides` into channels, in the order (t y x c)."""
    for axis, stride in zip((2, 4, 6), strides, strict=True):
        x_BCtyx = x_BCtyx.unflatten(axis, (-1, stride))
    return x_BCtyx.permute(0, 3, 5, 7, 1, 2, 4, 6).flatten(1, 4)


def _channels_to_space(x_BCtyx: Tensor, strides: tuple[int, int, int]) -> Tensor:
    """Undo _space_to_channels."""
    cells = x_BCtyx.unflatten(1, (*strides, -1)).permute(0, 4, 5, 1, 6, 2, 7, 3)
    return cells.flatten(6, 7).flatten(4, 5).flatten(2, 3)


class Level(nn.Module):
    """Residual blocks of one resolution and the change to the next."""

    def __init__(self, blocks: list[ResnetBlock]) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def forward(self, x_BCtyx: Tensor, slab: RowShard = WHOLE) -> Tensor:
        for block in self.block:
            x_BCtyx = block(x_BCtyx, slab)
        if self.downsample is not None:
            x_BCtyx = self.downsample(x_BCtyx)
        if self.upsample is not None:
            x_BCtyx = self.upsample(x_BCtyx, slab)
        return x_BCtyx


def _levels(
    config: VaeConfig, channels_per_level: tuple[int, ...], num_blocks: int
) -> Iterator[tuple[int, Level, int, int]]:
    """Yield (index, level with its blocks, its channels, the next level's channels)."""
    channels = channels_per_level[0]
    for index, width in enumerate(channels_per_level):
        blocks = [
            ResnetBlock(channels if i == 0 else width, width, config.norm_num_groups)
            for i in range(num_blocks)
        ]
        following = channels_per_level[min(index + 1, len(channels_per_level) - 1)]
        level = Level(blocks)
        yield index, level, width, following
        # Whatever the resampling made of the width is what the next level starts from.
        channels = width
        if level.downsample is not None and config.match_channels_down:
            channels = following
        if level.upsample is not None and config.match_channels_up:
            channels = following


class Encoder(nn.Module):
    """Pixels to the mean and log-variance of latents. Shapes: rgb_B3tyx -> moments_BZtyx."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths, groups = config.block_channels, config.norm_num_groups
        self.conv_in = _conv(config.rgb_channels, widths[0])
        self.down = nn.ModuleList()
        first_temporal = config.num_spatial_levels - config.num_temporal_levels
        for index, level, width, following in _levels(config, widths, config.layers_per_block):
            if index < config.num_spatial_levels:
                target = following if config.match_channels_down else width
                level.downsample = Downsample(width, target, index >= first_temporal)
            self.down.append(level)
        self.mid = MiddleBlock(widths[-1], groups)
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = _conv(widths[-1], 2 * config.latent_channels)
        self._group_size = widths[-1] // (2 * config.latent_channels)

    def forward(self, rgb_B3tyx: Tensor) -> Tensor:
        hidden = self.conv_in(rgb_B3tyx)
        for level in self.down:
            hidden = level(hidden)
        hidden = self.mid(hidden)
        shortcut = hidden.unflatten(1, (-1, self._group_size)).mean(dim=2)
        return self.conv_out(F.silu(self.norm_out(hidden))) + shortcut


class Decoder(nn.Module):
    """Latents to pixels. Shapes: z_BCtyx -> rgb_B3tyx.

    A group of ranks shares the finer levels out by rows; the coarsest one, whose attention sees
    everything, is run by each.
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths, groups = config.block_channels[::-1], config.norm_num_groups
        self.conv_in = _conv(config.latent_channels, widths[0])
        self._repeats = widths[0] // config.latent_channels
        self.mid = MiddleBlock(widths[0], groups)
        self.up = nn.ModuleList()
        for index, level, width, following in _levels(config, widths, config.layers_per_block + 1):
            if index < config.num_spatial_levels:
                target = following if config.match_channels_up else width
                level.upsample = Upsample(width, target, index < config.num_temporal_levels)
            self.up.append(level)
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = _conv(widths[-1], config.rgb_channels)

    def forward(self, z_BCtyx: Tensor, group: Group) -> Tensor:
        hidden = self.conv_in(z_BCtyx) + z_BCtyx.repeat_interleave(self._repeats, dim=1)
        slab, hidden = RowShard(group).scatter(self.mid(hidden))
        for level in self.up:
            hidden = level(hidden, slab)
        rgb_B3tyx = slab.conv(self.conv_out, F.silu(slab.norm(self.norm_out, hidden)))
        # Only the last frame is an image.
        return slab.gather(rgb_B3tyx[:, :, -1:], z_BCtyx.shape[3])


class Vae(nn.Module):
    """Encoder and decoder with the checkpoint's scale and shift of latents."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self._config = config

    def decode(self, latent_BCYX: Tensor, group: Group = SINGLE.whole) -> Tensor:
        """Return the image of a latent; a group of ranks decodes it together.

        Shapes: latent_BCYX -> rgb_B3yx float32, nominally in [-1, 1].
        """
        z_BC1YX = self.unscale(latent_BCYX).unsqueeze(2)
        rgb_B31yx = self.decoder(z_BC1YX.to(self.decoder.conv_in.weight.dtype), group)
        return rgb_B31yx.squeeze(2).float()

    def unscale(self, latent_BCYX: Tensor) -> Tensor:
        """Return what the decoder reads for a latent of the transformer."""
        return latent_BCYX.float() / self._config.scaling_factor + self._config.shift_factor

    def encode(self, rgb_B3yx: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and clamped log-variance of the encoder, unscaled.

        Shapes: rgb_B3yx in [-1, 1] -> mean_BCYX, logvar_BCYX float32.
        """
        frames = rgb_B3yx.unsqueeze(2).expand(-1, -1, self._config.temporal_factor, -1, -1)
        moments_BZ1YX = self.encoder(frames.to(self.encoder.conv_in.weight.dtype))
        mean_BCYX, logvar_BCYX = moments_BZ1YX.squeeze(2).float().chunk(2, dim=1)
        return mean_BCYX, logvar_BCYX.clamp(*LOGVAR_RANGE)

    def scale(self, z_BCYX: Tensor) -> Tensor:
        """Return the transformer's latent for what the encoder wrote; undoes `unscale`."""
        return (z_BCYX - self._config.shift_factor) * self._config.scaling_factor


def to_uint8(rgb_B3yx: Tensor) -> Tensor:
    """Map [-1, 1] to 0..255, rounded. Shapes: rgb_B3yx -> rgb_Byx3 uint8."""
    scaled = (rgb_B3yx / 2 + 0.5).clamp(0, 1) * 255
    return scaled.round().to(torch.uint8).movedim(1, -1)
