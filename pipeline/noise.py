"""Random streams of a seed: equal on every machine, with any thread count and in any batch.

A seed has four streams that share nothing: the image's first noise, the fresh noise of stochastic
solvers, the tokens of a text, and the noise of input images' latents.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# Second halves of the generators' keys, after the seed. The image's first noise has none: it is
# the reference's own.
FRESH_NOISE_STREAM = 1
TEXT_STREAM = 2
POSTERIOR_STREAM = 3


def image_noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Return the standard normal latent that an image starts from, float32 on the CPU.

    torch's CPU generator reads only the low 32 bits of a seed; larger seeds key a counter-based
    generator with all of theirs. The API's maximum lies 192 above 2^63 and wraps.
    """
    if seed < 2**32:
        return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))
    generator = np.random.Generator(np.random.Philox(key=seed % 2**63))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


def to_device(noise: Tensor, device: torch.device) -> Tensor:
    """Return noise on a device; a CUDA device is not waited for, thanks to pinned memory."""
    if device.type == "cuda":
        return noise.pin_memory().to(device, non_blocking=True)
    return noise.to(device)


def text_stream(seed: int) -> np.random.Generator:
    """Return the generator from which the tokens of an image's text are sampled."""
    return _stream(seed, TEXT_STREAM)


def posterior_noise(seed: int, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Return the standard normal noise of input images' latents, in order, float32 on the CPU.

    The release draws it before the image's first noise, from the same generator, and again with
    another seed for each text. Here every stage of a request has the same, and the first noise is
    that of a request without input images.
    """
    stream = _stream(seed, POSTERIOR_STREAM)
    return [torch.from_numpy(stream.standard_normal(shape, dtype=np.float32)) for shape in shapes]


def _stream(seed: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed % 2**63, number]))


class NoiseStream:
    """The fresh noise of stochastic solvers: one sample a step."""

    def __init__(self, seed: int, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._generator = _stream(seed, FRESH_NOISE_STREAM)

    def sample(self) -> Tensor:
        """Return the next standard normal latent, float32 on the CPU."""
        return torch.from_numpy(self._generator.standard_normal(self._shape, dtype=np.float32))
