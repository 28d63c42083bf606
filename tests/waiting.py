"""Waits on a condition, with a deadline: what tests use in place of sleeps."""

import asyncio
import time
from collections.abc import Awaitable, Callable

TIMEOUT_S = 60.0
POLL_S = 0.02


def wait_until(
    is_true: Callable[[], bool], timeout_s: float = TIMEOUT_S, every_s: float = POLL_S
) -> None:
    """Return when a condition is true.

    Raises:
        AssertionError: it was not in time.
    """
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(every_s)


async def until(
    is_true: Callable[[], bool | Awaitable[bool]],
    timeout_s: float = TIMEOUT_S,
    every_s: float = POLL_S,
) -> None:
    """Return when a condition is true; the event loop runs meanwhile.

    Raises:
        AssertionError: it was not in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        answer = is_true()
        if answer if isinstance(answer, bool) else await answer:
            return
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        await asyncio.sleep(every_s)
