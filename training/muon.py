"""Muon for the matrices of the layers, shared between processes; AdamW steps the rest.

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the
coefficients of the four iterations are Polar Express (arXiv 2505.16932), table 1.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

_COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
)
WEIGHT_DECAY = 0.02


def orthogonalize(gradient_ZZ: Tensor) -> Tensor:
    """Return about the nearest orthogonal matrix; a leading axis is a stack of matrices."""
    x_ZZ = gradient_ZZ.bfloat16()
    is_tall = x_ZZ.shape[-2] > x_ZZ.shape[-1]
    if is_tall:
        x_ZZ = x_ZZ.mT
    x_ZZ = x_ZZ / (x_ZZ.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in _COEFFICIENTS:
        gram_ZZ = x_ZZ @ x_ZZ.mT
        x_ZZ = a * x_ZZ + (b * gram_ZZ + c * (gram_ZZ @ gram_ZZ)) @ x_ZZ
    if is_tall:
        x_ZZ = x_ZZ.mT
    ratio = gradient_ZZ.shape[-2] / gradient_ZZ.shape[-1]
    step_ZZ: Tensor = x_ZZ.float() * max(1.0, ratio) ** 0.5
    return step_ZZ


class Muon:
    """Momentum on every process, the orthogonal step of each matrix on one of them."""

    def __init__(self, parameters: list[Tensor], rank: int, world_size: int) -> None:
        self._parameters = parameters
        self._rank, self._world_size = rank, world_size
        self.momenta = [torch.zeros_like(parameter) for parameter in parameters]
        self._owners = self._share_work()

    def _share_work(self) -> dict[int, int]:
        loads = [0] * self._world_size
        owners = {}
        for index in sorted(
            range(len(self._parameters)), key=lambda i: -self._parameters[i].numel()
        ):
            owners[index] = loads.index(min(loads))
            loads[owners[index]] += self._parameters[index].numel()
        return owners

    @torch.no_grad()
    def step(self, rate: float, momentum: float) -> None:
        """Take one step along the gradients, which are equal on all processes."""
        steps = []
        for index, parameter in enumerate(self._parameters):
            assert parameter.grad is not None
            self.momenta[index].lerp_(parameter.grad, 1 - momentum)
            if self._owners[index] == self._rank:
                steps.append(orthogonalize(parameter.grad.lerp(self.momenta[index], momentum)))
            else:
                steps.append(torch.zeros_like(parameter))
        flat = torch.cat([step.flatten() for step in steps])
        if self._world_size > 1:
            dist.all_reduce(flat)
        parts = flat.split([parameter.numel() for parameter in self._parameters])
        for parameter, part in zip(self._parameters, parts, strict=True):
            parameter.mul_(1 - WEIGHT_DECAY * rate).add_(part.view_as(parameter), alpha=-rate)


@torch.no_grad()
def step_kernels(
    kernels: Sequence[Tensor], momenta: Sequence[Tensor], rate: float, momentum: float = 0.95
) -> None:
    """Take one step along the gradients of convolutions of one frame.

    Of a 3D kernel only the middle slice is stepped: the others multiply padding.
    Shapes: kernels (Z, C, t, y, x), momenta (Z, C * y * x) float32.
    """
    for kernel, momentum_ZZ in zip(kernels, momenta, strict=True):
        assert kernel.grad is not None
        middle = kernel.shape[2] // 2
        gradient_ZZ = kernel.grad[:, :, middle].flatten(1)
        momentum_ZZ.lerp_(gradient_ZZ, 1 - momentum)
        step_ZZ = orthogonalize(gradient_ZZ.lerp(momentum_ZZ, momentum))
        # Wide kernels have orthonormal rows of small entries; this evens the size of the entries.
        scale = max(1.0, step_ZZ.shape[1] / step_ZZ.shape[0]) ** 0.5
        step_ZCyx = step_ZZ.view_as(kernel[:, :, middle])
        kernel[:, :, middle].add_(step_ZCyx, alpha=-rate * scale)
