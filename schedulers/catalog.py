"""Catalog of scheduler names: solver, order and sigma schedule of each. Free of torch.

native: the solver of that name. alias: another spelling of a native one. substituted: what the name
stands for does not exist for a flow model; the nearest solver is used, and the result's diagnostics
say so.

`karras` and `exponential` schedules are spread over the ratio of noise to image; `fitted` ones have
no name: they belong to a checkpoint and stand in for `shifted` where a task names no scheduler and
wants fewer evaluations.

Source: the 75 names of TencentHunyuanimage30Params.scheduler in the official Python SDK, and
`UniPCMultistepScheduler`, which another official client offers.
"""

from dataclasses import dataclass
from typing import Literal

Status = Literal["native", "alias", "substituted"]
SigmaSchedule = Literal["shifted", "karras", "exponential", "beta", "fitted"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A name's solver family, order, sigma schedule and noise (eta 1 = stochastic)."""

    solver: str
    order: int
    schedule: SigmaSchedule
    eta: float
    status: Status


_ROWS = """
DDIM                               euler      1 shifted      0 alias
DDIMScheduler                      euler      1 shifted      0 alias
DDPMScheduler                      dpmpp_m    1 shifted      1 alias
DEISMultistepScheduler             deis       2 shifted      0 native
Default                            euler      1 shifted      0 native
DPM++                              dpmpp_s    2 shifted      0 native
DPM++ 2M                           dpmpp_m    2 shifted      0 native
DPM++ 2M Beta                      dpmpp_m    2 beta         0 native
DPM++ 2M Exponential               dpmpp_m    2 exponential  0 native
DPM++ 2M Karras                    dpmpp_m    2 karras       0 native
DPM++ 2M SDE                       dpmpp_m    2 shifted      1 native
DPM++ 2M SDE Beta                  dpmpp_m    2 beta         1 native
DPM++ 2M SDE Exponential           dpmpp_m    2 exponential  1 native
DPM++ 2M SDE Karras                dpmpp_m    2 karras       1 native
DPM++ 2M SDE Uniform               dpmpp_m    2 shifted      1 alias
DPM++ 2M Uniform                   dpmpp_m    2 shifted      0 alias
DPM++ 3M                           dpmpp_m    3 shifted      0 native
DPM++ 3M Beta                      dpmpp_m    3 beta         0 native
DPM++ 3M Exponential               dpmpp_m    3 exponential  0 native
DPM++ 3M Karras                    dpmpp_m    3 karras       0 native
DPM++ 3M SDE Uniform               dpmpp_m    3 shifted      1 alias
DPM++ 3M Uniform                   dpmpp_m    3 shifted      0 alias
DPM++ Beta                         dpmpp_s    2 beta         0 native
DPM++ Exponential                  dpmpp_s    2 exponential  0 native
DPM++ Karras                       dpmpp_s    2 karras       0 native
DPM++ SDE                          dpmpp_s    2 shifted      1 native
DPM++ SDE Beta                     dpmpp_s    2 beta         1 native
DPM++ SDE Exponential              dpmpp_s    2 exponential  1 native
DPM++ SDE Karras                   dpmpp_s    2 karras       1 native
DPM++ Uniform                      dpmpp_s    2 shifted      0 alias
DPM++ Uniform Beta                 dpmpp_s    2 beta         0 alias
DPM++ Uniform Exponential          dpmpp_s    2 exponential  0 alias
DPM++ Uniform Karras               dpmpp_s    2 karras       0 alias
DPMSolverMultistepInverse          dpmpp_m    2 shifted      0 substituted
DPMSolverMultistepScheduler        dpmpp_m    2 shifted      0 alias
DPMSolverSinglestepScheduler       dpmpp_s    2 shifted      0 alias
EDMDPMSolverMultistepScheduler     dpmpp_m    2 karras       0 substituted
EDMEulerScheduler                  euler      1 karras       0 substituted
Euler                              euler      1 shifted      0 native
Euler a                            euler_a    1 shifted      1 native
Euler Beta                         euler      1 beta         0 native
Euler Exponential                  euler      1 exponential  0 native
Euler Karras                       euler      1 karras       0 native
EulerAncestralDiscreteScheduler    euler_a    1 shifted      1 native
EulerDiscreteScheduler             euler      1 shifted      0 native
FlowMatchEulerDiscreteScheduler    euler      1 shifted      0 native
Heun                               heun       2 shifted      0 native
HeunDiscreteScheduler              heun       2 shifted      0 native
Heun Karras                        heun       2 karras       0 native
IPNDMScheduler                     ipndm      4 shifted      0 native
IPNDM Uniform                      ipndm      4 shifted      0 alias
IPNDM Uniform Beta                 ipndm      4 beta         0 alias
IPNDM Uniform Exponential          ipndm      4 exponential  0 alias
IPNDM Uniform Karras               ipndm      4 karras       0 alias
KDPM2AncestralDiscreteScheduler    dpm2_a     2 shifted      1 native
KDPM2DiscreteScheduler             midpoint   2 shifted      0 native
LCM                                lcm        1 shifted      1 substituted
LCMScheduler                       lcm        1 shifted      1 substituted
LMS                                lms        4 shifted      0 native
LMSDiscreteScheduler               lms        4 shifted      0 native
LMS Karras                         lms        4 karras       0 native
PNDMScheduler                      ipndm      4 shifted      0 alias
TCDScheduler                       lcm        1 shifted      1 substituted
UniPC                              unipc      2 shifted      0 native
UniPC 2M                           unipc      2 shifted      0 native
UniPC 2M Karras                    unipc      2 karras       0 native
UniPC 2M Uniform                   unipc      2 shifted      0 alias
UniPC 3M                           unipc      3 shifted      0 native
UniPC 3M Karras                    unipc      3 karras       0 native
UniPC 3M Uniform                   unipc      3 shifted      0 alias
UniPC Karras                       unipc      2 karras       0 native
UniPC Uniform                      unipc      2 shifted      0 alias
UniPC Uniform Beta                 unipc      2 beta         0 alias
UniPC Uniform Exponential          unipc      2 exponential  0 alias
UniPC Uniform Karras               unipc      2 karras       0 alias
UniPCMultistepScheduler            unipc      2 shifted      0 alias
"""


def _parse(row: str) -> tuple[str, Entry]:
    name, solver, order, schedule, eta, status = row.rsplit(maxsplit=5)
    return name, Entry(solver, int(order), schedule, float(eta), status)  # type: ignore[arg-type]


CATALOG: dict[str, Entry] = dict(map(_parse, _ROWS.strip().splitlines()))
ACCEPTED = tuple(CATALOG)
