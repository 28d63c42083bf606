"""The trajectory of one image: its latent, its solver's history and the next velocity wanted."""

from torch import Tensor

from schedulers.protocol import Node, Point, SampleNoise, Solver, StepGenerator


class Trajectory:
    """Drives a solver for one image.

    `query` is where the velocity is wanted; `advance` takes it. `step` counts the solver's steps
    and `evaluation` those within one. When `is_done`, `latent_BCYX` is the image's.
    """

    def __init__(
        self, solver: Solver, noise_BCYX: Tensor, sample_noise: SampleNoise | None = None
    ) -> None:
        """A stochastic solver needs `sample_noise`."""
        self._solver = solver
        self._sample_noise = sample_noise or _no_noise
        self._history: list[Node] = []
        self.sigmas = solver.sigmas
        self.num_steps = len(solver.sigmas) - 1
        self.latent_BCYX = noise_BCYX.float()
        self.step = 0
        self.num_evaluations = 0
        self._begin()

    @property
    def is_done(self) -> bool:
        return self.step == self.num_steps

    def advance(self, velocity_BCYX: Tensor) -> bool:
        """Take the velocity at `query`; return whether that ended a step."""
        self.num_evaluations += 1
        try:
            self.query: Point = self._generator.send(velocity_BCYX.float())
        except StopIteration as e:
            self.latent_BCYX = e.value
            self.step += 1
            if not self.is_done:
                self._begin()
            return True
        self.evaluation += 1
        return False

    def _begin(self) -> None:
        self.evaluation = 0
        self._generator: StepGenerator = self._solver.step(
            self.latent_BCYX, self.step, self._history, self._sample_noise
        )
        self.query = next(self._generator)


def _no_noise() -> Tensor:
    raise ValueError("a stochastic solver needs a stream of noise")
