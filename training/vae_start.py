"""A closed-form start for the autoencoder: a hierarchical PCA of the images.

Every level of the encoder keeps the principal components of its cells, so that the whole encoder
is one linear map of each 64x64 block of pixels, and stays it: it is never trained further. Latents
of a scene are then one matrix product, and the decoder starts as the best linear inverse. From
random weights the same decoder is far behind it after an hour.
"""

import torch
from torch import Tensor, nn

from model.vae import AttentionBlock, Conv3d, Downsample, ResnetBlock, Upsample, Vae

# Constant channels beside each colour keep the last norm's statistics independent of the image.
CONSTANT = 3.0
# Latent channel k gets a standard deviation proportional to sd_k ** WHITENING: between raw PCA (1),
# where details drown, and full whitening (0), where the loss is mostly about invisible details.
WHITENING = 0.5
NUM_SAMPLES = 60000


@torch.no_grad()
def start_vae(vae: Vae, blocks_Byx3: Tensor, noise: float = 0.004) -> None:
    """Set all weights of `vae`. Shapes: blocks_Byx3 in [-1, 1], sides multiples of the stride.

    `noise` is the relative deviation of the decoder's weights from the closed form; the encoder
    has none.
    """
    for part in vae.modules():
        if isinstance(part, nn.GroupNorm):
            part.weight.fill_(1.0)
            part.bias.zero_()
        elif isinstance(part, Conv3d):
            part.weight.zero_()
            assert part.bias is not None
            part.bias.zero_()
    start_residuals(vae.decoder)
    downs = [part for part in vae.encoder.modules() if isinstance(part, Downsample)]
    ups = [part for part in vae.decoder.modules() if isinstance(part, Upsample)][::-1]
    features = _widen(blocks_Byx3, vae.encoder.conv_in.out_channels)
    _set_taps(vae.encoder.conv_in, {(1, 1): _widen(torch.eye(3), features.shape[-1]).T})
    for level, (down, up) in enumerate(zip(downs, ups, strict=True)):
        if level == len(downs) - 1:
            _start_last(features, down, up, noise)
        else:
            features = _start_level(features, down, up, level == 0, noise)
    _start_ends(vae, noise)


def _widen(x_Z3: Tensor, channels: int) -> Tensor:
    return torch.cat((x_Z3, x_Z3.new_zeros(*x_Z3.shape[:-1], channels - x_Z3.shape[-1])), dim=-1)


def start_residuals(module: nn.Module) -> None:
    """Make every residual block the identity that can still learn."""
    for part in module.modules():
        if isinstance(part, ResnetBlock):
            _scatter(part.conv1, 1.0)
        elif isinstance(part, AttentionBlock):
            for projection in (part.q, part.k, part.v):
                nn.init.normal_(projection.weight, std=projection.in_channels**-0.5)


def _scatter(convolution: Conv3d, gain: float) -> None:
    fan_in = convolution.in_channels * 9
    convolution.weight[:, :, 1].normal_(0.0, gain * fan_in**-0.5)


def principal_components(x_TZ: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, the first components and their variances. Shapes: -> _Z, _CZ, _C."""
    picked = torch.randperm(len(x_TZ), generator=torch.Generator().manual_seed(0))[:NUM_SAMPLES]
    x_TZ = x_TZ[picked].double()
    mean_Z = x_TZ.mean(dim=0)
    variances, vectors = torch.linalg.eigh(torch.cov((x_TZ - mean_Z).T))
    count = min(count, len(mean_Z))
    # Components without variance stay unused.
    used = (variances.flip(0)[:count] > 1e-9).double()
    components_CZ = vectors.flip(1)[:, :count].T * used.unsqueeze(1)
    return mean_Z.float(), components_CZ.float(), variances.flip(0)[:count].float()


def _start_level(
    features: Tensor, down: Downsample, up: Upsample, is_first: bool, noise: float
) -> Tensor:
    """Start one level and its mirror; return the features of the next level.

    Shapes: features (B, y, x, Z) -> (B, y / 2, x / 2, 4 Z').
    """
    channels, kept = features.shape[-1], down.conv.out_channels
    if is_first:  # three colours: nothing to leave out
        mean_Z = features.new_zeros(channels)
        components_CZ = _widen(torch.eye(3), channels)
    else:
        mean_Z, components_CZ, _ = principal_components(features.flatten(0, 2), kept)
    project_CZ = features.new_zeros(kept, channels)
    project_CZ[: len(components_CZ)] = components_CZ
    _start_down(down, {(1, 1): project_CZ}, -project_CZ @ mean_Z)
    restore_ZC, offset_Z = project_CZ.T, mean_Z
    if is_first:
        signs_ZC, offset_Z = _colour_pairs(channels)
        restore_ZC = signs_ZC @ project_CZ.T[:3]
    _start_up(up, torch.block_diag(*[restore_ZC] * 4), offset_Z.repeat(4), noise)
    kept_features: Tensor = (features - mean_Z) @ project_CZ.T
    return _space_to_channels(kept_features)


def _start_last(features: Tensor, down: Downsample, up: Upsample, noise: float) -> None:
    """Start the last level, whose mean is read from the upper two of four cells.

    A cell's filter also sees the cell below it, so each of the two projects a column.
    """
    channels, kept = features.shape[-1], down.conv.out_channels
    pairs = torch.cat((features[:, 0::2], features[:, 1::2]), dim=-1)
    mean_Z, components_CZ, variances = principal_components(pairs.flatten(0, 2), kept)
    deviations = variances.clamp_min(1e-8).sqrt()
    scales = deviations ** (WHITENING - 1)
    scales /= (scales * deviations).square().mean().sqrt()
    project_CZ = components_CZ * scales.unsqueeze(1)
    upper_CZ, lower_CZ = project_CZ.chunk(2, dim=1)
    _start_down(down, {(1, 1): upper_CZ, (2, 1): lower_CZ}, -project_CZ @ mean_Z)
    # Rows: cells (upper left, upper right, lower left, lower right); columns: left, right latents.
    restore_ZC = (components_CZ / scales.unsqueeze(1)).T
    rows = [torch.block_diag(half_ZC, half_ZC) for half_ZC in restore_ZC.chunk(2)]
    first, second = mean_Z.chunk(2)
    latents_ZC = torch.cat(rows)
    spread = latents_ZC.new_zeros(4 * channels, up.conv.in_channels)
    spread[:, 0::2] = latents_ZC  # the decoder's input holds a latent and its negative, in turn
    _start_up(up, spread, torch.cat((first, first, second, second)), noise)


def _colour_pairs(channels: int) -> tuple[Tensor, Tensor]:
    """Return the map of 3 colours to groups (+x, -x, +constant, -constant), and its offsets."""
    signs_Z3, offset_Z = torch.zeros(channels, 3), torch.zeros(channels)
    for colour in range(3):
        signs_Z3[4 * colour, colour], signs_Z3[4 * colour + 1, colour] = 1.0, -1.0
        offset_Z[4 * colour + 2], offset_Z[4 * colour + 3] = CONSTANT, -CONSTANT
    return signs_Z3, offset_Z


def _space_to_channels(features: Tensor) -> Tensor:
    cells: Tensor = features.unflatten(1, (-1, 2)).unflatten(3, (-1, 2))
    return cells.permute(0, 1, 3, 2, 4, 5).flatten(3)


def _start_down(down: Downsample, taps: dict[tuple[int, int], Tensor], bias: Tensor) -> None:
    """Set the convolution so that it and its shortcut together give the wanted map."""
    out_channels, channels = down.conv.out_channels, down.conv.in_channels
    group = 4 * channels // (4 * out_channels)
    shortcut = torch.zeros(out_channels, channels)
    shortcut[torch.arange(channels) // group, torch.arange(channels)] = 1 / group
    _set_taps(down.conv, {**taps, (1, 1): taps[(1, 1)] - shortcut}, bias)


def _start_up(up: Upsample, wanted: Tensor, bias: Tensor, noise: float) -> None:
    out_channels, channels = up.conv.out_channels, up.conv.in_channels
    shortcut = torch.zeros(out_channels, channels)
    shortcut[torch.arange(out_channels), torch.arange(out_channels) * channels // out_channels] = 1
    _scatter(up.conv, noise * 3)
    _set_taps(up.conv, {(1, 1): wanted - shortcut}, bias)


def _start_ends(vae: Vae, noise: float) -> None:
    """Start the decoder's first and last convolution. The encoder's output is its shortcut."""
    decoder = vae.decoder
    width, latents = decoder.conv_in.out_channels, decoder.conv_in.in_channels
    wanted, shortcut = torch.zeros(width, latents), torch.zeros(width, latents)
    for channel in range(latents):
        wanted[2 * channel, channel], wanted[2 * channel + 1, channel] = 1.0, -1.0
    shortcut[torch.arange(width), torch.arange(width) * latents // width] = 1.0
    _scatter(decoder.conv_in, noise * 3)
    _set_taps(decoder.conv_in, {(1, 1): wanted - shortcut})
    # silu(x) - silu(-x) = x, and the norm divides by the deviation of (x, -x, K, -K).
    deviation = ((CONSTANT**2 + 0.3) / 2) ** 0.5
    signs_Z3, _ = _colour_pairs(decoder.conv_out.in_channels)
    _scatter(decoder.conv_out, noise * 3)
    _set_taps(decoder.conv_out, {(1, 1): deviation * signs_Z3.T})


def _set_taps(
    convolution: Conv3d, taps: dict[tuple[int, int], Tensor], bias: Tensor | None = None
) -> None:
    """Add matrices at places (y, x) of the 3x3 kernel in the middle slice."""
    for (y, x), matrix in taps.items():
        convolution.weight[:, :, 1, y, x] += matrix
    if bias is not None:
        assert convolution.bias is not None
        convolution.bias.copy_(bias)
