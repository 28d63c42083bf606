"""Per-process set-up: logging with request ids, how torch allocates memory, signals."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from server.logs import Form, Level, configure_logging

# The request that the current coroutine serves, for the log; coroutines inherit it.
request_id: ContextVar[str] = ContextVar("request_id", default="-")

# Device memory grows in place where the weights leave little room; and pinned memory takes what was
# asked for: beyond 1 MB, torch would round it up to a power of two, 144 GiB of offloaded experts to
# 192. Source: both keys are in the libc10 of torch 2.13; never run on a GPU.
CUDA_ALLOCATOR = "expandable_segments:True,pinned_max_round_threshold_mb:1"
_ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def configure_process(level: Level = "info", form: Form = "text") -> None:
    """Log to stderr, and set how torch allocates. Before torch is imported.

    What the environment sets already stays as it is.

    A checkpoint's pages are touched once while it is loaded: with pages of 2 MB there are a tenth
    as many faults, and loading from the page cache took half as long (`hyimage bench loading`).
    """
    configure_logging(add_request_id, level, form)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # child processes inherit it
    if not any(name in os.environ for name in _ALLOCATOR_VARIABLES):
        os.environ[_ALLOCATOR_VARIABLES[0]] = CUDA_ALLOCATOR


def add_request_id(record: logging.LogRecord) -> bool:
    """Give a log record the id of the request that it is about."""
    if not hasattr(record, "request_id"):
        record.request_id = request_id.get()
    return True


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Block SIGTERM and SIGINT for this thread, and for the processes that it starts meanwhile.

    Without it, a signal to the process group would end a child that cannot ignore signals yet.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stop_signals() -> None:
    """Leave SIGTERM and SIGINT to the server: this process ends when its pipe ends.

    systemd, supervisors and terminals signal the whole process group, and a server that drains
    still needs its worker. Processes that this one starts ignore them too.
    """
    for one in STOP_SIGNALS:
        signal.signal(one, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
