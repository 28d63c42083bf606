"""Gauges of `/metrics`: read from the parts of the server at each scrape."""

import asyncio
import contextlib

from server.api.state import AppState
from server.runware.errors import TaskError

HOST = "host"
STORE_TIMEOUT_S = 2.0  # a store that hangs must not keep the other figures from the page


async def refresh_gauges(state: AppState) -> None:
    """Set the gauges that have a value at any time, not only when something happens."""
    metrics, status, figures = state.metrics, state.tasks.status, state.tasks.figures
    counts = state.tasks.running.count()
    metrics.queued.set(counts.num_waiting)
    metrics.running.set(counts.num_started)
    metrics.unfinished_images.set(counts.num_images)
    metrics.images_limit.set(state.settings.server.max_queued_images)
    metrics.sockets.set(state.sessions.num_sockets)
    metrics.ready.set(status.is_ready)
    memory: dict[tuple[str, str], int] = {
        (one.device, one.kind): one.size_bytes for one in figures.memory
    }
    if figures.resident_bytes is not None:
        memory[HOST, "resident"] = figures.resident_bytes
    metrics.worker.update(figures.num_deaths, memory)
    with contextlib.suppress(TaskError, TimeoutError):  # the gauge keeps its last value
        async with asyncio.timeout(STORE_TIMEOUT_S):
            metrics.webhook_backlog.set(await state.store.count_webhooks())
