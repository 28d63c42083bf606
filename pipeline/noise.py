"""Seeds to noise: one stream per image, the same on every machine, thread count and batch."""

import numpy as np
import torch
from torch import Tensor


def image_noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Return the standard normal latent that an image starts from, float32 on the CPU.

    torch's CPU generator reads only the low 32 bits of a seed; larger seeds key a counter-based
    generator with all of theirs. The API's maximum lies 192 above 2^63 and wraps.
    """
    if seed < 2**32:
        return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))
    generator = np.random.Generator(np.random.Philox(key=seed % 2**63))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


class NoiseStream:
    """The second stream of a seed: fresh noise for stochastic solvers, one draw a step.

    Keyed with the seed and the stream's number, so that it shares nothing with the first noise.
    """

    STREAM = 1

    def __init__(self, seed: int, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._generator = np.random.Generator(np.random.Philox(key=[seed % 2**63, self.STREAM]))

    def generate(self) -> Tensor:
        """Return the next standard normal latent, float32 on the CPU."""
        return torch.from_numpy(self._generator.standard_normal(self._shape, dtype=np.float32))
