"""Ray Serve deployments: ingress replicas that speak the API, engine replicas that generate.

An ingress is the whole server without its worker; an engine is the worker with its watchdog. Both
are the classes that a single machine uses; Ray Serve places, counts, restarts and drains them.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayError
from ray.serve import Application
from ray.serve.config import AutoscalingConfig

from pipeline.settings import PipelineSettings
from server.app import create_app
from server.cluster.engine import APPLICATION, ENGINES, ClusterEngine
from server.engine.local import LocalEngine
from server.engine.messages import Job, JobEvent
from server.import_guard import check_imports
from server.process import configure_process
from server.serve import check_exposure
from server.settings import Settings, SettingsError, load_settings

log = logging.getLogger(__name__)

INGRESS_DRAIN_S = 30.0  # idle WebSockets would hold it for ever; tasks go to another ingress
LOOK_EVERY_S = 0.1
WATCH_EVERY_S = 5.0
WAITING_PER_ACTIVE = 4


class EngineReplica:
    """One engine: a worker process, or several that share out the model, on one machine."""

    async def __init__(  # type: ignore[misc] # Ray awaits it
        self, settings: PipelineSettings, watch_every_s: float = WATCH_EVERY_S
    ) -> None:
        """Load the checkpoint; until then Ray Serve sends no job.

        Raises:
            RuntimeError: it cannot be loaded.
        """
        configure_process()
        check_imports()
        self._failure = ""
        self._watch_every_s = watch_every_s
        self._numbers = itertools.count()
        self._current: dict[str, str] = {}
        self._engine = LocalEngine(settings, on_failed=self._note_failure)
        await self._engine.start()
        while not self._engine.status.is_ready:
            self.check_health()
            await asyncio.sleep(LOOK_EVERY_S)

    async def submit(self, job: Job, ingress: ActorHandle) -> AsyncIterator[JobEvent]:
        """Yield the events of a job, and cancel it when the ingress that submitted it is dead.

        A job that is submitted again was taken over from an ingress that seemed dead: the former
        run of it is cancelled.
        """
        run_id = f"{job.job_id}.{next(self._numbers)}"
        if (former := self._current.get(job.job_id)) is not None:
            await self._engine.cancel(former)
        self._current[job.job_id] = run_id
        watching = asyncio.get_running_loop().create_task(self._watch(ingress, run_id))
        try:
            async for event in self._engine.submit(replace(job, job_id=run_id)):
                yield replace(event, job_id=job.job_id)
        finally:
            watching.cancel()
            if self._current[job.job_id] == run_id:
                del self._current[job.job_id]

    async def _watch(self, ingress: ActorHandle, run_id: str) -> None:
        """Cancel a run when its ingress is dead; Ray itself lets the stream go on."""
        while True:
            await asyncio.sleep(self._watch_every_s)
            try:
                await ingress.__ray_ready__.remote()
            except ActorDiedError:
                log.warning("job %s: its ingress is dead; it is generated no further", run_id)
                await self._engine.cancel(run_id)
                return
            except RayError:
                continue  # busy, or the network: only a dead ingress needs no image

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises.

        Raises:
            RuntimeError: the worker can never generate again.
        """
        if self._failure:
            raise RuntimeError(self._failure)

    async def close(self) -> None:
        """End the worker."""
        await self._engine.stop()

    async def __del__(self) -> None:
        """Called, and awaited, by Ray Serve when nothing runs here any more."""
        await self.close()

    def _note_failure(self, message: str) -> None:
        self._failure = message


def build_application(settings: Settings) -> Application:
    """Return the ingress deployment bound to its engines.

    Raises:
        SettingsError: it would serve everybody who reaches it.
    """
    check_exposure(settings)
    settings = settings.for_cluster()

    def build_ingress() -> FastAPI:
        configure_process(settings.logging.level, settings.logging.format)
        check_imports()
        return create_app(
            settings, ClusterEngine(serve.get_deployment_handle(ENGINES, APPLICATION))
        )

    cluster = settings.cluster
    resources = engine_resources(settings)
    engine = serve.deployment(
        EngineReplica,
        name=ENGINES,
        # More than the worker interleaves, so that the next job is there when one ends, but few, so
        # that most wait where Ray Serve counts them and a new engine can take them.
        max_ongoing_requests=WAITING_PER_ACTIVE * settings.worker.max_active_jobs,
        ray_actor_options={
            "num_cpus": resources.get("CPU", 0),
            "num_gpus": resources.get("GPU", 0),
            "resources": dict(cluster.engine_resources),
        },
        placement_group_bundles=[resources],
        placement_group_strategy="STRICT_PACK",  # its ranks exchange tensors in every layer
        graceful_shutdown_timeout_s=cluster.drain_s,
        **_count(settings),
    )
    ingress = serve.deployment(
        serve.ingress(build_ingress)(),
        name="Ingress",
        num_replicas=cluster.ingresses,
        max_ongoing_requests=2 * settings.server.max_connections,
        ray_actor_options={"num_cpus": cluster.cpus_per_ingress},
        graceful_shutdown_timeout_s=INGRESS_DRAIN_S,
    )
    return ingress.bind(engine.bind(settings.worker))


def build(args: dict[str, str]) -> Application:
    """Return the application for a Serve config file, whose `args` may name a settings file.

    Raises:
        SettingsError: the file is wrong, or `args` holds something else.
    """
    if unknown := set(args) - {"config"}:
        raise SettingsError(f"args: {', '.join(sorted(unknown))} is not known; write config: FILE")
    return build_application(load_settings(Path(args["config"]) if "config" in args else None))


def engine_resources(settings: Settings) -> dict[str, float]:
    """Return what one engine needs of one machine, as Ray counts it."""
    worker, cluster = settings.worker, settings.cluster
    is_cuda = worker.device.startswith("cuda") or bool(worker.layer_devices)
    num_gpus = max(len(worker.layer_devices), worker.num_ranks) if is_cuda else 0
    resources = {"CPU": cluster.cpus_per_engine, "GPU": num_gpus, **cluster.engine_resources}
    return {name: amount for name, amount in resources.items() if amount}


def _count(settings: Settings) -> dict[str, Any]:
    """Return how many engines there are, or between which numbers Ray Serve chooses."""
    cluster = settings.cluster
    if cluster.max_engines <= cluster.engines:
        return {"num_replicas": cluster.engines}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=cluster.engines,
            max_replicas=cluster.max_engines,
            target_ongoing_requests=cluster.tasks_per_engine,
        )
    }
