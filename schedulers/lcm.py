"""LCM sampling: the predicted image and fresh noise, for checkpoints distilled to it."""

from dataclasses import dataclass

from torch import Tensor

from schedulers.protocol import Node, Point, SampleNoise, StepGenerator


@dataclass(frozen=True, slots=True)
class LCM:
    """The predicted image, with fresh noise up to the next sigma.

    On a model that was not distilled the images come out too much alike: the deviation stays
    at two thirds of the true one, however many steps are taken.

    Source: Song et al. 2023 (arXiv 2303.01469), algorithm 1, for the flow's alpha and sigma.
    """

    sigmas: tuple[float, ...]

    def step(
        self, latent_BCYX: Tensor, step: int, history: list[Node], sample_noise: SampleNoise
    ) -> StepGenerator:
        sigma, next_sigma = self.sigmas[step], self.sigmas[step + 1]
        velocity_BCYX = yield Point(latent_BCYX, sigma)
        x0_BCYX = latent_BCYX - sigma * velocity_BCYX
        return (1 - next_sigma) * x0_BCYX + next_sigma * sample_noise()
