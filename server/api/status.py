"""The endpoint `GET /v1/status`: what an operator watches. An extension of this server."""

import time
from collections.abc import Iterable
from importlib.metadata import version

from fastapi import APIRouter

from server.api.openapi import KEY, failures
from server.api.state import AppState, State
from server.api.task_routes import Caller
from server.engine.messages import MemoryReading
from server.runware.status_answer import (
    DeviceMemory,
    QueueState,
    Speed,
    Status,
    TaskState,
    WorkerState,
)
from server.tasks.estimates import Estimates, Mode
from server.tasks.running import RunningTask

router = APIRouter()


@router.get(
    "/v1/status",
    operation_id="getStatus",
    openapi_extra=KEY,
    responses=failures("Failure", 401),
)
async def get_status(state: State, client: Caller) -> Status:
    """Return the worker's state, the queue, learned speeds, and the key's own tasks."""
    own = [task for task in state.tasks.running.values() if task.row.owner == client.owner]
    own.sort(key=lambda task: (_place(task), task.row.created_at))
    return {
        "version": version("hunyuan-image-server"),
        "model": state.settings.api.model,
        "worker": _worker_state(state),
        "queue": _queue_state(state, len(own)),
        "tasks": [_task_state(state, task) for task in own],
        "speeds": list_speeds(state.tasks.running.estimates),
    }


def list_speeds(estimates: Estimates) -> list[Speed]:
    """Return the learned seconds of every mode that has done a step, the smallest size first."""
    modes = sorted(estimates.modes(), key=_order)
    return [speed for mode in modes if (speed := _speed(estimates, mode)) is not None]


def _order(mode: Mode) -> tuple[int, int, str, int]:
    return mode.pixels, mode.rows, mode.cache, mode.num_inputs


def _speed(estimates: Estimates, mode: Mode) -> Speed | None:
    step_s = estimates.mean("step", mode)
    if step_s is None:
        return None
    speed: Speed = {
        "megapixels": round(mode.pixels / 1e6, 3),
        "guided": mode.rows > 1,
        "cache": "none" if mode.cache.startswith("none ") else mode.cache,
        "scheduler": mode.scheduler,
        "secondsPerStep": step_s,
        "secondsPerPrefill": estimates.mean("prefill", mode),
        "secondsPerDecode": estimates.mean("decode", mode),
    }
    if mode.num_inputs:
        speed["inputImages"] = mode.num_inputs
    return speed


def _worker_state(state: AppState) -> WorkerState:
    status, figures = state.tasks.status, state.tasks.figures
    return {
        "ready": status.is_ready,
        "description": status.description,
        "memoryBytes": figures.resident_bytes,
        "devices": list_devices(figures.memory),
        "deaths": figures.num_deaths,
    }


def list_devices(readings: Iterable[MemoryReading]) -> list[DeviceMemory]:
    """Return the memory of each device of which the worker has reported anything."""
    found: dict[str, dict[str, int]] = {}
    for reading in readings:
        found.setdefault(reading.device, {})[reading.kind] = reading.size_bytes
    return [
        {
            "device": device,
            "allocatedBytes": kinds.get("allocated"),
            "peakBytes": kinds.get("peak"),
            "totalBytes": kinds.get("total"),
        }
        for device, kinds in found.items()
    ]


def _queue_state(state: AppState, num_own: int) -> QueueState:
    running = state.tasks.running
    num_started = sum(task.has_started for task in running.values())
    return {
        "running": num_started,
        "queued": len(running) - num_started,
        "images": sum(task.num_images for task in running.values()),
        "maxImages": state.settings.server.max_queued_images,
        "otherKeys": len(running) - num_own,
        "estimatedSeconds": _rounded(running.seconds_until_idle()),
    }


def _task_state(state: AppState, task: RunningTask) -> TaskState:
    request = task.request
    return {
        "taskUUID": task.row.task_uuid,
        "status": "running" if task.has_started else "queued",
        "position": task.position,
        "progress": task.progress,
        "images": task.num_images,
        "width": task.row.width,
        "height": task.row.height,
        "steps": None if request is None else request.num_steps,
        "ageSeconds": round(max(0.0, time.time() - task.row.created_at), 1),
        "estimatedSeconds": _rounded(state.tasks.running.seconds_left(task.row.task_uuid)),
    }


def _place(task: RunningTask) -> float:
    """Order tasks as they run; one without a place yet comes last."""
    return float("inf") if task.position is None else task.position


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
