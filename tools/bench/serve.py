"""Overhead of the server: everything but generation, beside a bare route on the same body.

Both run as processes of their own on loopback and get the same task in turns, from the same
client: first one request at a time for the time to answer, then many at once for the rate.
"""

import asyncio
import multiprocessing
import socket
import statistics
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import uvicorn
from fastapi import FastAPI

from server.app import create_app
from server.engine.messages import Job, JobDone, JobEvent, JobImage
from server.engine.protocol import EngineFigures, EngineStatus
from server.image_settings import ImageSettings
from server.runware.schemas import ImageInference
from server.settings import Settings, TaskSettings

START_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeResult:
    """Milliseconds at the median for one request at a time; requests a second for many."""

    ours_ms: float
    bare_ms: float
    ours_per_s: float
    bare_per_s: float
    ratio: float


class StubEngine:
    """Generates nothing: every image is the same few bytes."""

    status = EngineStatus(is_ready=True, description="stub")
    figures = EngineFigures()

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Nothing to stop."""

    async def cancel(self, job_id: str) -> None:
        """Nothing to cancel."""

    async def show_previews(self, job_id: str) -> None:
        """Nothing to show."""

    async def submit(self, job: Job) -> AsyncIterator[JobEvent]:
        """Yield the images of a job at once."""
        for image in range(len(job.request.seeds)):
            yield JobImage(
                job_id=job.job_id,
                image=image,
                encoded=b"image",
                width_px=1024,
                height_px=1024,
            )
        yield JobDone(job_id=job.job_id)


def run_serve_bench(settings: Settings, num_requests: int, concurrency: int) -> ServeResult:
    """Measure both servers, rounds alternating."""
    with (
        tempfile.TemporaryDirectory() as folder,
        _serving(_run_ours, settings, folder) as ours,
        _serving(_run_bare, settings, folder) as bare,
    ):
        model = settings.api.model
        rounds = [
            (
                asyncio.run(_load(ours, model, num_requests, concurrency)),
                asyncio.run(_load(bare, model, num_requests, concurrency)),
            )
            for _ in range(3)
        ]
    ours_ms, bare_ms = (statistics.median(r[i][0] for r in rounds) * 1e3 for i in (0, 1))
    ours_per_s, bare_per_s = (statistics.median(r[i][1] for r in rounds) for i in (0, 1))
    return ServeResult(
        ours_ms=ours_ms,
        bare_ms=bare_ms,
        ours_per_s=ours_per_s,
        bare_per_s=bare_per_s,
        ratio=ours_per_s / bare_per_s,
    )


async def _load(url: str, model: str, num_requests: int, concurrency: int) -> tuple[float, float]:
    """Return the median seconds of one request, and requests a second with many at once."""
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(
        base_url=url, limits=limits, timeout=60, trust_env=False
    ) as client:

        async def send() -> float:
            task = {
                "taskType": "imageInference",
                "taskUUID": str(uuid.uuid4()),
                "model": model,
                "positivePrompt": "A lighthouse on a cliff at dawn, seen from the sea",
                "steps": 20,
            }
            started = time.perf_counter()
            response = await client.post("/v1", json=[task])
            response.raise_for_status()
            return time.perf_counter() - started

        alone = [await send() for _ in range(max(10, num_requests // 10))]
        pending = iter(range(num_requests))

        async def worker() -> None:
            for _ in pending:
                await send()

        started = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return statistics.median(alone), num_requests / (time.perf_counter() - started)


@contextmanager
def _serving(
    target: Callable[[Settings, str, int], None], settings: Settings, folder: str
) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = multiprocessing.get_context("spawn").Process(
        target=target, args=(settings, folder, port), daemon=True
    )
    process.start()
    try:
        _wait_for(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.join()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise RuntimeError("a server of the benchmark did not start") from None
            time.sleep(0.05)
        else:
            return


def settings_within(settings: Settings, folder: str) -> Settings:
    """Return settings whose tasks and images lie in a folder, so that nothing else is touched."""
    images = {**settings.images.model_dump(), "store": f"{folder}/images"}
    tasks = {**settings.tasks.model_dump(), "database_url": f"sqlite:///{folder}/tasks.db"}
    return settings.model_copy(
        update={
            "images": ImageSettings.model_validate(images),
            "tasks": TaskSettings.model_validate(tasks),
        }
    )


def _run_ours(settings: Settings, folder: str, port: int) -> None:
    app = create_app(settings_within(settings, folder), StubEngine())
    uvicorn.run(app, port=port, log_level="error", access_log=False)


def _run_bare(settings: Settings, folder: str, port: int) -> None:
    app = FastAPI()

    @app.post("/v1")
    async def validate(tasks: list[ImageInference]) -> dict[str, list[dict[str, str]]]:
        return {"data": [{"taskUUID": task.taskUUID} for task in tasks]}

    uvicorn.run(app, port=port, log_level="error", access_log=False)
