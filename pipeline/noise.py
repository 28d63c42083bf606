"""Random streams of a seed: the same on every machine, with any thread count and in any batch.

A seed has three streams that share nothing: the image's first noise, the fresh noise of stochastic
solvers, and the tokens of a text.
"""

import numpy as np
import torch
from torch import Tensor

# Keys beside the seed. The image's first noise has none: it is the reference's own.
FRESH_NOISE_STREAM = 1


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
    """The fresh noise of stochastic solvers: one sample a step."""

    def __init__(self, seed: int, shape: tuple[int, ...]) -> None:
        self._shape = shape
        key = [seed % 2**63, FRESH_NOISE_STREAM]
        self._generator = np.random.Generator(np.random.Philox(key=key))

    def sample(self) -> Tensor:
        """Return the next standard normal latent, float32 on the CPU."""
        return torch.from_numpy(self._generator.standard_normal(self._shape, dtype=np.float32))
