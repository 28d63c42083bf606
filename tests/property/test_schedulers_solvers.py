"""Every solver against flows whose solution is known."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from schedulers.build import build_scheduler
from schedulers.catalog import ACCEPTED, CATALOG
from schedulers.euler import Euler
from schedulers.multistep import IPNDM, LinearMultistep
from schedulers.runge_kutta import Heun, Midpoint
from schedulers.unipc import UniPC
from tests.property.flows import NORMAL, TWO_MODES, Mixture, drive, error_of

NATIVE = [name for name in ACCEPTED if CATALOG[name].status == "native"]
STOCHASTIC = [name for name in ACCEPTED if build_scheduler(name, 4, 3.0).is_stochastic]
# What the specification measured for its own mixture at 20 and 30 steps.
MEASURED = {
    "LMS": (0.03457, 0.00612),
    "LMS Karras": (0.01295, 0.00242),
    "IPNDMScheduler": (0.01435, 0.00354),
    "DEISMultistepScheduler": (0.03769, 0.01982),
    "DPM++": (0.04416, 0.02588),
    "DPM++ Karras": (0.03307, 0.01602),
    "DPM++ Beta": (0.0319, 0.01494),
    "DPM++ Exponential": (0.03433, 0.01691),
    "DPM++ 2M": (0.04449, 0.02195),
    "DPM++ 2M Karras": (0.03058, 0.01482),
    "DPM++ 2M Beta": (0.02873, 0.01365),
    "DPM++ 2M Exponential": (0.03132, 0.01534),
    "DPM++ 3M": (0.047, 0.01708),
    "DPM++ 3M Karras": (0.03082, 0.01508),
    "DPM++ 3M Beta": (0.02928, 0.01397),
    "DPM++ 3M Exponential": (0.03136, 0.0155),
    "UniPC": (0.04517, 0.0193),
    "UniPC 2M": (0.04517, 0.0193),
    "UniPC 2M Karras": (0.02929, 0.01413),
    "UniPC 3M": (0.05184, 0.02013),
    "UniPC 3M Karras": (0.02955, 0.01426),
    "UniPC Karras": (0.02929, 0.01413),
}


def noise(count: int = 1000, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def exact_two_modes() -> Tensor:
    return TWO_MODES.solve_exactly(noise())


@given(num_steps=st.integers(1, 100), seed=st.integers(0, 9))
def test_every_deterministic_solver_is_exact_for_a_constant_velocity(
    num_steps: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    start, image = torch.randn(2, 8, generator=generator)
    for name in ("Euler", "Heun", "KDPM2DiscreteScheduler", "LMS", "IPNDMScheduler"):
        solver = build_scheduler(name, num_steps, shift=3.0).solver
        ended = drive(solver, start, lambda x, sigma: start - image).latent_BCYX
        torch.testing.assert_close(ended, image, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("solver", "order"), [(Euler, 1), (Heun, 2), (Midpoint, 2)])
@pytest.mark.parametrize("flow", [NORMAL, TWO_MODES], ids=["normal", "two modes"])
def test_the_error_falls_with_the_order_of_the_solver(
    solver: type[Euler | Heun | Midpoint], order: int, flow: Mixture
) -> None:
    """On even sigmas from 1 to 0: halving the step divides the error by 2^order."""
    start = noise()
    exact = flow.solve_exactly(start)
    counts = (40, 80)
    errors = []
    for count in counts:
        sigmas = (*(1 - i / count for i in range(count)), 0.0)
        ended = drive(solver(sigmas), start.double(), flow.velocity).latent_BCYX
        errors.append(float((ended - exact).square().mean().sqrt()))
    slope = math.log(errors[0] / errors[1]) / math.log(counts[1] / counts[0])
    assert abs(slope - order) < 0.3


@pytest.mark.parametrize("name", MEASURED)
def test_multistep_solvers_reach_the_measured_errors(name: str, exact_two_modes: Tensor) -> None:
    errors = [error_of(name, n, TWO_MODES, noise(), exact_two_modes) for n in (20, 30)]
    assert all(error <= bound for error, bound in zip(errors, MEASURED[name], strict=True))


def test_higher_order_beats_euler_at_every_usual_number_of_steps(exact_two_modes: Tensor) -> None:
    for num_steps in (8, 12, 14, 20, 28, 30, 50):
        euler = error_of("Euler", num_steps, TWO_MODES, noise(), exact_two_modes)
        for name in NATIVE:
            entry = CATALOG[name]
            if entry.eta == 0 and entry.schedule == "shifted" and entry.order > 1:
                assert error_of(name, num_steps, TWO_MODES, noise(), exact_two_modes) < euler, name


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("flow", [NORMAL, TWO_MODES], ids=["normal", "two modes"])
def test_stochastic_solvers_keep_mean_and_deviation(name: str, flow: Mixture) -> None:
    solver = build_scheduler(name, 50, shift=3.0).solver
    ended = drive(solver, noise(40_000, seed=1), flow.velocity).latent_BCYX
    assert abs(float(ended.mean())) < 0.03
    assert 0.85 < float(ended.std()) / flow.variance**0.5 < 1.05


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 20, 100])
def test_every_name_ends_at_sigma_0_without_nan(num_steps: int) -> None:
    for name in ACCEPTED:
        scheduler = build_scheduler(name, num_steps, shift=3.0)
        trajectory = drive(scheduler.solver, noise(16), TWO_MODES.velocity)
        assert scheduler.solver.sigmas[-1] == 0.0
        assert trajectory.latent_BCYX.dtype == torch.float32
        assert torch.isfinite(trajectory.latent_BCYX).all(), name
        assert float(trajectory.latent_BCYX.abs().max()) < 5, name


@pytest.mark.parametrize(("family", "num_steps"), [(LinearMultistep, 27), (IPNDM, 19)])
def test_with_few_steps_the_multistep_solvers_of_velocities_stay_of_second_order(
    family: type[LinearMultistep | IPNDM], num_steps: int
) -> None:
    """A third order extrapolates the turns of guided velocities at high noise."""
    for count, is_equal in ((num_steps, True), (num_steps + 1, False)):
        sigmas = build_scheduler("Euler", count, shift=3.0).solver.sigmas
        ends = [
            drive(family(sigmas, order), noise(8), TWO_MODES.velocity).latent_BCYX
            for order in (4, 2)
        ]
        assert torch.equal(*ends) == is_equal


def test_two_evaluation_solvers_evaluate_twice_but_at_the_last_step() -> None:
    for name in (
        "Heun",
        "Heun Karras",
        "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
    ):
        solver = build_scheduler(name, 10, shift=3.0).solver
        assert drive(solver, noise(4), NORMAL.velocity).num_evaluations == 19


def test_the_catalog_holds_the_names_of_the_api() -> None:
    counts = {
        status: sum(entry.status == status for entry in CATALOG.values())
        for status in ("native", "alias", "substituted")
    }
    # 24 aliases of the API, and one name that another official client sends.
    assert counts == {"native": 45, "alias": 25, "substituted": 6}


def test_a_substituted_name_says_what_is_used_instead() -> None:
    scheduler = build_scheduler("LCM", 10, shift=3.0)
    assert (scheduler.resolved, scheduler.is_stochastic) == ("Euler shifted", False)
    assert "Euler" in scheduler.warnings[0]
    assert build_scheduler("LCM", 10, shift=3.0, is_distilled=True).resolved == "LCM shifted"
    assert build_scheduler("Euler", 10, shift=3.0).warnings == ()


def build_oracle(scheduler: Callable[..., Any], **options: object) -> Any:
    """Return a scheduler of diffusers, which has no annotations."""
    return scheduler(**options)


def test_euler_equals_diffusers() -> None:
    ours = build_scheduler("Euler", 20, shift=3.0).solver
    oracle = build_oracle(FlowMatchEulerDiscreteScheduler, shift=1.0)
    oracle.set_timesteps(sigmas=list(ours.sigmas[:-1]))
    x = noise(64)
    expected = x
    for step, timestep in enumerate(oracle.timesteps):
        velocity = TWO_MODES.velocity(expected, ours.sigmas[step]).float()
        expected = oracle.step(velocity, timestep, expected).prev_sample
    ended = drive(ours, x, lambda x, sigma: TWO_MODES.velocity(x, sigma).float()).latent_BCYX
    torch.testing.assert_close(ended, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("num_steps", [20, 30])
def test_unipc_equals_diffusers(order: int, num_steps: int) -> None:
    """On sigmas that start just below 1, where lambda is finite for both."""
    sigmas = (0.98, *build_scheduler("UniPC", num_steps, shift=3.0).solver.sigmas[1:])
    oracle = build_oracle(
        UniPCMultistepScheduler,
        solver_order=order,
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        flow_shift=1.0,
    )
    oracle.set_timesteps(num_steps)
    oracle.sigmas = torch.tensor(sigmas)
    x = noise(64).view(1, 4, 4, 4)
    expected = x
    for step, timestep in enumerate(oracle.timesteps):
        velocity = TWO_MODES.velocity(expected, sigmas[step]).float()
        expected = oracle.step(velocity, timestep, expected).prev_sample
    solver = UniPC(sigmas, order)
    ended = drive(solver, x, lambda x, sigma: TWO_MODES.velocity(x, sigma).float()).latent_BCYX
    torch.testing.assert_close(ended, expected, atol=1e-5, rtol=0)
