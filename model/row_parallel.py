"""Row-parallel VAE decoding: each rank holds a shard of an image's rows, with a halo exchange.

The numbers are those of the whole image: a convolution sees one row of each neighbouring shard, a
norm the statistics of all shards. At the image's edges the padding is zero, as without shards.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.mesh import RankGroup


@dataclass(frozen=True, slots=True)
class RowShard:
    """This rank's shard of an image's rows, `share` of all of them."""

    ranks: RankGroup
    share: float = 1.0

    def conv(self, conv: nn.Conv3d, x_BCtyx: Tensor) -> Tensor:
        """Convolve with a kernel of 3 and zero padding of 1 as if all rows were here."""
        if self.ranks.size == 1:
            return conv(x_BCtyx)
        x_BCtyx = self._with_halo(x_BCtyx)
        if x_BCtyx.shape[2] == 1:  # of a single time slice the kernel's other slices see padding
            x_BCyx = F.conv2d(x_BCtyx.squeeze(2), conv.weight[:, :, 1], conv.bias, padding=(0, 1))
            return x_BCyx.unsqueeze(2)
        return F.conv3d(x_BCtyx, conv.weight, conv.bias, padding=(1, 0, 1))

    def norm(self, norm: nn.GroupNorm, x_BCtyx: Tensor) -> Tensor:
        """Normalise groups of channels by the mean and variance over all rows, in float32."""
        if self.ranks.size == 1:
            return norm(x_BCtyx)
        x_BMZ = x_BCtyx.float().unflatten(1, (norm.num_groups, -1)).flatten(2)
        count = x_BMZ.shape[2] / self.share
        mean_BM1 = self.ranks.all_reduce(x_BMZ.sum(dim=2, keepdim=True)) / count
        centred_BMZ = x_BMZ - mean_BM1
        variance_BM1 = self.ranks.all_reduce(centred_BMZ.square().sum(dim=2, keepdim=True)) / count
        normed = (centred_BMZ * (variance_BM1 + norm.eps).rsqrt()).view(x_BCtyx.shape)
        weight, bias = (p.float().view(-1, 1, 1, 1) for p in (norm.weight, norm.bias))
        return (normed * weight + bias).to(x_BCtyx.dtype)

    def scatter(self, x_BCtyx: Tensor) -> tuple["RowShard", Tensor]:
        """Split a whole image; return this rank's shard and its rows."""
        if self.ranks.size == 1:
            return self, x_BCtyx
        local_BCtyx = x_BCtyx.tensor_split(self.ranks.size, dim=3)[self.ranks.rank]
        return RowShard(self.ranks, local_BCtyx.shape[3] / x_BCtyx.shape[3]), local_BCtyx

    def gather(self, x_BCtyx: Tensor, num_rows: int) -> Tensor:
        """Return the whole image from all ranks' shards of `num_rows` rows of latents."""
        size = self.ranks.size
        if size == 1:
            return x_BCtyx
        # Shards differ by a row of latents; ranks exchange tensors of one shape.
        scale = x_BCtyx.shape[3] / (self.share * num_rows)
        rows = [round(len(shard) * scale) for shard in torch.arange(num_rows).tensor_split(size)]
        padded = F.pad(x_BCtyx, (0, 0, 0, max(rows) - x_BCtyx.shape[3]))
        shards = self.ranks.all_gather(padded, dim=3).chunk(size, dim=3)
        return torch.cat([shard[:, :, :, :n] for shard, n in zip(shards, rows, strict=True)], dim=3)

    def _with_halo(self, x_BCtyx: Tensor) -> Tensor:
        """Return this shard between the last row above it and the first row below it."""
        edges = torch.cat((x_BCtyx[:, :, :, :1], x_BCtyx[:, :, :, -1:]), dim=3)
        firsts_and_lasts = self.ranks.all_gather(edges, dim=3)
        outside = torch.zeros_like(edges[:, :, :, :1])
        rank, last = self.ranks.rank, self.ranks.size - 1
        above = firsts_and_lasts[:, :, :, 2 * rank - 1 : 2 * rank] if rank else outside
        below = firsts_and_lasts[:, :, :, 2 * rank + 2 : 2 * rank + 3] if rank < last else outside
        return torch.cat((above, x_BCtyx, below), dim=3)


WHOLE = RowShard(RankGroup())
