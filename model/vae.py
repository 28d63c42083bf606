"""VAE between pixels and latents: a 3D convolutional autoencoder, of which an image is one frame.

A latent has one time slice; the decoder's temporal levels turn it into `temporal_factor` frames,
of which the last is the image. Group norms run over all frames, so none can be left out.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import VaeConfig
from model.mesh import SINGLE, RankGroup
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
    """Two normed convolutions and a shortcut around them. Shapes: x_BCtyx -> x_BZtyx."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        self.conv1 = _conv(channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=NORM_EPS)
        self.conv2 = _conv(out_channels, out_channels)
        self.nin_shortcut = None
        if channels != out_channels:
            self.nin_shortcut = _conv(channels, out_channels, 1)

    def forward(self, x_BCtyx: Tensor, shard: RowShard = WHOLE) -> Tensor:
        hidden = shard.conv(self.conv1, F.silu(shard.norm(self.norm1, x_BCtyx)))
        hidden = shard.conv(self.conv2, F.silu(shard.norm(self.norm2, hidden)))
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

    def forward(self, x_BCtyx: Tensor, shard: RowShard = WHOLE) -> Tensor:
        learnt = _channels_to_space(shard.conv(self.conv, x_BCtyx), self.strides)
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


@dataclass(frozen=True, slots=True)
class LevelWidths:
    """Channels that a level reads, holds inside, and leaves its resampling with."""

    into: int
    inner: int
    out: int


def level_widths(
    channels: tuple[int, ...], num_resampled: int, is_matched: bool
) -> list[LevelWidths]:
    """Return the widths of each level, in running order.

    `channels` are those inside. The first `num_resampled` levels end with a resampling, which
    also changes to the next level's channels if `is_matched`; otherwise that level's blocks do.
    """
    widths: list[LevelWidths] = []
    into = channels[0]
    for index, inner in enumerate(channels):
        is_changed = index < num_resampled and is_matched
        out = channels[index + 1] if is_changed else inner
        widths.append(LevelWidths(into, inner, out))
        into = out
    return widths


class Level(nn.Module):
    """Residual blocks of one resolution, then the resampling to the next. Shapes: as its parts."""

    def __init__(
        self,
        widths: LevelWidths,
        num_blocks: int,
        groups: int,
        downsample: Downsample | None = None,
        upsample: Upsample | None = None,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(widths.into if i == 0 else widths.inner, widths.inner, groups)
            for i in range(num_blocks)
        )
        self.downsample = downsample
        self.upsample = upsample

    def forward(self, x_BCtyx: Tensor, shard: RowShard = WHOLE) -> Tensor:
        for block in self.block:
            x_BCtyx = block(x_BCtyx, shard)
        if self.downsample is not None:
            x_BCtyx = self.downsample(x_BCtyx)
        if self.upsample is not None:
            x_BCtyx = self.upsample(x_BCtyx, shard)
        return x_BCtyx


class Encoder(nn.Module):
    """Pixels to the mean and log-variance of latents. Shapes: rgb_B3tyx -> moments_BZtyx."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        channels, groups = config.block_channels, config.norm_num_groups
        self.conv_in = _conv(config.rgb_channels, channels[0])
        self.down = nn.ModuleList()
        num_resampled = config.num_spatial_levels
        first_temporal = num_resampled - config.num_temporal_levels
        levels = level_widths(channels, num_resampled, config.match_channels_down)
        for index, widths in enumerate(levels):
            downsample = None
            if index < num_resampled:
                downsample = Downsample(widths.inner, widths.out, index >= first_temporal)
            self.down.append(Level(widths, config.layers_per_block, groups, downsample=downsample))
        self.mid = MiddleBlock(channels[-1], groups)
        self.norm_out = nn.GroupNorm(groups, channels[-1], eps=NORM_EPS)
        self.conv_out = _conv(channels[-1], 2 * config.latent_channels)
        self._group_size = channels[-1] // (2 * config.latent_channels)

    def forward(self, rgb_B3tyx: Tensor) -> Tensor:
        hidden = self.conv_in(rgb_B3tyx)
        for level in self.down:
            hidden = level(hidden)
        hidden = self.mid(hidden)
        shortcut = hidden.unflatten(1, (-1, self._group_size)).mean(dim=2)
        return self.conv_out(F.silu(self.norm_out(hidden))) + shortcut


class Decoder(nn.Module):
    """Latents to pixels. Shapes: z_BCtyx -> rgb_B3tyx.

    Several ranks split the finer levels by rows; the coarsest one, whose attention sees every
    position, is run by each.
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        channels, groups = config.block_channels[::-1], config.norm_num_groups
        self.conv_in = _conv(config.latent_channels, channels[0])
        self._repeats = channels[0] // config.latent_channels
        self.mid = MiddleBlock(channels[0], groups)
        self.up = nn.ModuleList()
        levels = level_widths(channels, config.num_spatial_levels, config.match_channels_up)
        for index, widths in enumerate(levels):
            upsample = None
            if index < config.num_spatial_levels:
                upsample = Upsample(widths.inner, widths.out, index < config.num_temporal_levels)
            self.up.append(Level(widths, config.layers_per_block + 1, groups, upsample=upsample))
        self.norm_out = nn.GroupNorm(groups, channels[-1], eps=NORM_EPS)
        self.conv_out = _conv(channels[-1], config.rgb_channels)

    def forward(self, z_BCtyx: Tensor, ranks: RankGroup) -> Tensor:
        hidden = self.conv_in(z_BCtyx) + z_BCtyx.repeat_interleave(self._repeats, dim=1)
        shard, hidden = RowShard(ranks).scatter(self.mid(hidden))
        for level in self.up:
            hidden = level(hidden, shard)
        rgb_B3tyx = shard.conv(self.conv_out, F.silu(shard.norm(self.norm_out, hidden)))
        # The last frame alone is the image.
        return shard.gather(rgb_B3tyx[:, :, -1:], z_BCtyx.shape[3])


class Vae(nn.Module):
    """Encoder and decoder with the checkpoint's scale and shift of latents."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self._config = config

    def decode(self, latent_BCYX: Tensor, ranks: RankGroup = SINGLE.whole) -> Tensor:
        """Return the image of a latent; several ranks decode it together, a shard of rows each.

        Shapes: latent_BCYX -> rgb_B3yx float32, nominally in [-1, 1].
        """
        z_BC1YX = self.unscale(latent_BCYX).unsqueeze(2)
        rgb_B31yx = self.decoder(z_BC1YX.to(self.decoder.conv_in.weight.dtype), ranks)
        return rgb_B31yx.squeeze(2).float()

    def unscale(self, latent_BCYX: Tensor) -> Tensor:
        """Return the decoder's input for a latent of the transformer."""
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
        """Return the transformer's latent for an encoder output; undoes `unscale`."""
        return (z_BCYX - self._config.shift_factor) * self._config.scaling_factor


def to_uint8(rgb_B3yx: Tensor) -> Tensor:
    """Map [-1, 1] to 0..255, rounded. Shapes: rgb_B3yx -> rgb_Byx3 uint8."""
    scaled = (rgb_B3yx / 2 + 0.5).clamp(0, 1) * 255
    return scaled.round().to(torch.uint8).movedim(1, -1)
