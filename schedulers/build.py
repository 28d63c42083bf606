"""From a name of the API to a solver over its grid."""

from dataclasses import dataclass

from schedulers.catalog import CATALOG, Entry, SigmaSchedule, Status
from schedulers.dpm_solver import DPMSolverMultistep, DPMSolverSinglestep
from schedulers.euler import Euler, EulerAncestral, Heun, Midpoint, MidpointAncestral
from schedulers.lcm import LCM
from schedulers.multistep import DEIS, IPNDM, LinearMultistep
from schedulers.protocol import Solver
from schedulers.sigmas import build_sigmas
from schedulers.unipc import UniPC


@dataclass(frozen=True, slots=True)
class Scheduler:
    """A solver, and what the name that asked for it came to."""

    solver: Solver
    requested: str
    resolved: str
    grid: SigmaSchedule
    status: Status
    is_stochastic: bool
    warnings: tuple[str, ...]


def build_scheduler(
    name: str, num_steps: int, shift: float, is_distilled: bool = False
) -> Scheduler:
    """Return the scheduler of an accepted name for so many steps.

    `is_distilled` says that the checkpoint was distilled to jump straight to the image, which
    is what the LCM family does between its steps.

    Raises:
        KeyError: the name is not in the catalog.
        ValueError: fewer than one step.
    """
    entry = CATALOG[name]
    sigmas = tuple(build_sigmas(entry.grid, num_steps, shift).tolist())
    solver = _build(entry, sigmas, is_distilled)
    resolved = _describe(entry, solver)
    is_stochastic = entry.eta > 0 and not isinstance(solver, Euler)
    warnings = []
    if entry.status == "substituted":
        warnings.append(
            f"Scheduler '{name}' has no form for a flow model here; {resolved} was used instead."
        )
    return Scheduler(
        solver, name, resolved, entry.grid, entry.status, is_stochastic, tuple(warnings)
    )


def _build(entry: Entry, sigmas: tuple[float, ...], is_distilled: bool) -> Solver:
    match entry.solver:
        case "euler":
            return Euler(sigmas)
        case "euler_a":
            return EulerAncestral(sigmas)
        case "heun":
            return Heun(sigmas)
        case "midpoint":
            return Midpoint(sigmas)
        case "dpm2_a":
            return MidpointAncestral(sigmas)
        case "lms":
            return LinearMultistep(sigmas, entry.order)
        case "ipndm":
            return IPNDM(sigmas, entry.order)
        case "deis":
            return DEIS(sigmas)
        case "dpmpp_m":
            return DPMSolverMultistep(sigmas, entry.order, entry.eta)
        case "dpmpp_s":
            return DPMSolverSinglestep(sigmas, entry.eta)
        case "unipc":
            return UniPC(sigmas, entry.order)
        case "restart":
            return LCM(sigmas) if is_distilled else Euler(sigmas)
    raise AssertionError(f"the catalog names an unknown solver, {entry.solver}")


def _describe(entry: Entry, solver: Solver) -> str:
    order = getattr(solver, "order", None)
    parts = [type(solver).__name__, f"order {order}" if order else "", entry.grid]
    if getattr(solver, "eta", 0):
        parts.append("SDE")
    return " ".join(filter(None, parts))
