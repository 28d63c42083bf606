"""One check of `hyimage doctor`: what was looked at, how it stands, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A sentence about one thing, and a command or a step where something is to be done.

    warn: it works, worse than it could; fail: a server does not start, or cannot generate.
    """

    name: str
    status: Status
    sentence: str
    next_step: str = ""
