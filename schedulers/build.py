"""Scheduler construction: from a name of the API to a solver over its sigmas."""

from collections.abc import Callable
from dataclasses import dataclass

from schedulers.catalog import CATALOG, Entry, SigmaSchedule, Status
from schedulers.dpm_solver import DPMSolverMultistep, DPMSolverSinglestep
from schedulers.euler import Euler, EulerAncestral
from schedulers.lcm import LCM
from schedulers.multistep import DEIS, IPNDM, LinearMultistep
from schedulers.protocol import Solver
from schedulers.runge_kutta import Heun, Midpoint, MidpointAncestral
from schedulers.sigmas import build_sigmas
from schedulers.unipc import UniPC

# The solver families of the catalog.
_SOLVERS: dict[str, Callable[[tuple[float, ...], Entry], Solver]] = {
    "euler": lambda sigmas, entry: Euler(sigmas),
    "euler_a": lambda sigmas, entry: EulerAncestral(sigmas),
    "heun": lambda sigmas, entry: Heun(sigmas),
    "midpoint": lambda sigmas, entry: Midpoint(sigmas),
    "dpm2_a": lambda sigmas, entry: MidpointAncestral(sigmas),
    "lms": lambda sigmas, entry: LinearMultistep(sigmas, entry.order),
    "ipndm": lambda sigmas, entry: IPNDM(sigmas, entry.order),
    "deis": lambda sigmas, entry: DEIS(sigmas),
    "dpmpp_m": lambda sigmas, entry: DPMSolverMultistep(sigmas, entry.order, entry.eta),
    "dpmpp_s": lambda sigmas, entry: DPMSolverSinglestep(sigmas, entry.eta),
    "unipc": lambda sigmas, entry: UniPC(sigmas, entry.order),
    "lcm": lambda sigmas, entry: LCM(sigmas),
}


@dataclass(frozen=True, slots=True)
class Scheduler:
    """A solver, the requested name, and what that name was resolved to."""

    solver: Solver
    requested: str
    resolved: str
    sigma_schedule: SigmaSchedule
    status: Status
    is_stochastic: bool
    warnings: tuple[str, ...]


def build_scheduler(
    name: str,
    num_steps: int,
    shift: float,
    is_distilled: bool = False,
    fitted: tuple[float, ...] | None = None,
) -> Scheduler:
    """Return the scheduler of an accepted name for so many steps.

    `fitted` are sigmas of so many steps in the place of the name's own schedule. `is_distilled`
    says that the checkpoint was distilled to predict the image in one jump, which the LCM family
    does at every step; for other checkpoints Euler stands in.

    Raises:
        KeyError: the name is not in the catalog.
        ValueError: fewer than one step, or fitted sigmas of another number of steps.
    """
    entry = CATALOG[name]
    schedule: SigmaSchedule = entry.schedule if fitted is None else "fitted"
    sigmas = fitted or tuple(build_sigmas(entry.schedule, num_steps, shift).tolist())
    if len(sigmas) != num_steps + 1:
        raise ValueError(f"{len(sigmas)} fitted sigmas are not those of {num_steps} steps")
    family = "euler" if entry.solver == "lcm" and not is_distilled else entry.solver
    solver = _SOLVERS[family](sigmas, entry)
    resolved = _describe(schedule, solver)
    is_stochastic = entry.eta > 0 and not isinstance(solver, Euler)
    warnings = []
    if entry.status == "substituted":
        warnings.append(
            f"Scheduler '{name}' has no form for a flow model here; {resolved} was used instead."
        )
    return Scheduler(solver, name, resolved, schedule, entry.status, is_stochastic, tuple(warnings))


def _describe(schedule: SigmaSchedule, solver: Solver) -> str:
    order = getattr(solver, "order", None)
    parts = [type(solver).__name__, f"order {order}" if order else "", schedule]
    if getattr(solver, "eta", 0):
        parts.append("SDE")
    return " ".join(filter(None, parts))
