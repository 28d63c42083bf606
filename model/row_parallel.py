"""An image cut into slabs of rows, one a rank, with the numbers of the whole image.

A convolution sees a row of each neighbour, a norm the statistics of all slabs. At the image's
own edges both are what they are without slabs: zero padding, and nothing beyond.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.mesh import Group


@dataclass(frozen=True, slots=True)
class RowShard:
    """This rank's rows of an image, `share` of all of them."""

    group: Group
    share: float = 1.0

    def conv(self, conv: nn.Conv3d, x_BCtyx: Tensor) -> Tensor:
        """Convolve with a kernel of 3 and zero padding of 1 as if all rows were here."""
        if self.group.size == 1:
            return conv(x_BCtyx)
        x_BCtyx = self._with_halo(x_BCtyx)
        if x_BCtyx.shape[2] == 1:  # of a single time slice the kernel's other slices see padding
            x_BCyx = F.conv2d(x_BCtyx.squeeze(2), conv.weight[:, :, 1], conv.bias, padding=(0, 1))
            return x_BCyx.unsqueeze(2)
        return F.conv3d(x_BCtyx, conv.weight, conv.bias, padding=(1, 0, 1))

    def norm(self, norm: nn.GroupNorm, x_BCtyx: Tensor) -> Tensor:
        """Normalise groups of channels by the mean and variance over all rows, in float32."""
        if self.group.size == 1:
            return norm(x_BCtyx)
        x_BGZ = x_BCtyx.float().unflatten(1, (norm.num_groups, -1)).flatten(2)
        count = x_BGZ.shape[2] / self.share
        mean_BG1 = self.group.all_reduce(x_BGZ.sum(dim=2, keepdim=True)) / count
        centred_BGZ = x_BGZ - mean_BG1
        variance_BG1 = self.group.all_reduce(centred_BGZ.square().sum(dim=2, keepdim=True)) / count
        normed = (centred_BGZ * (variance_BG1 + norm.eps).rsqrt()).view(x_BCtyx.shape)
        weight, bias = (p.float().view(-1, 1, 1, 1) for p in (norm.weight, norm.bias))
        return (normed * weight + bias).to(x_BCtyx.dtype)

    def scatter(self, x_BCtyx: Tensor) -> tuple["RowShard", Tensor]:
        """Cut a whole image; return this rank's slab and its rows."""
        if self.group.size == 1:
            return self, x_BCtyx
        own = x_BCtyx.tensor_split(self.group.size, dim=3)[self.group.rank]
        return RowShard(self.group, own.shape[3] / x_BCtyx.shape[3]), own

    def gather(self, x_BCtyx: Tensor, num_rows: int) -> Tensor:
        """Put the slabs of all ranks together again, `num_rows` in all."""
        size = self.group.size
        if size == 1:
            return x_BCtyx
        # Slabs differ by a row of latents; ranks exchange tensors of one shape.
        scale = x_BCtyx.shape[3] / (self.share * num_rows)
        rows = [round(len(part) * scale) for part in torch.arange(num_rows).tensor_split(size)]
        padded = F.pad(x_BCtyx, (0, 0, 0, max(rows) - x_BCtyx.shape[3]))
        parts = self.group.all_gather(padded, dim=3).chunk(size, dim=3)
        return torch.cat([part[:, :, :, :n] for part, n in zip(parts, rows, strict=True)], dim=3)

    def _with_halo(self, x_BCtyx: Tensor) -> Tensor:
        """Return this slab between the last row above it and the first row below it."""
        edges = torch.cat((x_BCtyx[:, :, :, :1], x_BCtyx[:, :, :, -1:]), dim=3)
        firsts_and_lasts = self.group.all_gather(edges, dim=3)
        outside = torch.zeros_like(edges[:, :, :, :1])
        rank, last = self.group.rank, self.group.size - 1
        above = firsts_and_lasts[:, :, :, 2 * rank - 1 : 2 * rank] if rank else outside
        below = firsts_and_lasts[:, :, :, 2 * rank + 2 : 2 * rank + 3] if rank < last else outside
        return torch.cat((above, x_BCtyx, below), dim=3)


WHOLE = RowShard(Group())
