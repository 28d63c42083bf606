"""The application: builds the parts of a server and connects them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from pipeline.checkpoint_info import CheckpointInfo, read_checkpoint_info
from server.api import docs, http, openai, page, status, task_routes, websocket
from server.api import images as image_routes
from server.api.access_log import AccessLog
from server.api.body_limit import BodyLimit
from server.api.cors import Cors
from server.api.faults import ServerFaults, add_fault_handlers
from server.api.openapi import DescribedApp
from server.api.sessions import Sessions
from server.api.state import AppState
from server.api.traffic import Traffic
from server.background import Background
from server.delivery.egress import Egress
from server.delivery.images import ImageStore
from server.delivery.safety import SafetyChecker
from server.delivery.uploader import Uploader
from server.engine.protocol import Engine
from server.metrics import Metrics
from server.settings import Settings
from server.tasks.input_images import InputImages
from server.tasks.keys import Keys
from server.tasks.runner import RunnerServices
from server.tasks.service import TaskService
from server.tasks.store import TaskStore
from server.tasks.webhooks import WebhookSender
from server.tracing import Tracer, start_tracing


def create_app(
    settings: Settings,
    engine: Engine,
    *,
    images: ImageStore | None = None,
    safety: SafetyChecker | None = None,
    tracer: Tracer | None = None,
) -> FastAPI:
    """Return the application; the engine starts and stops with it.

    The settings name the image store, the content checker and the tracer unless others are given.

    Raises:
        ConfigError: the checkpoint's config.json or generation_config.json is not usable.
        SettingsError: the key file, the database, the image store, the content checker or the
            tracer cannot be used.
    """
    checkpoint = read_checkpoint_info(Path(settings.worker.checkpoint))
    egress = Egress(settings.egress)
    services = _build_services(
        settings,
        checkpoint,
        engine,
        egress,
        images or ImageStore(settings.images.store, is_signing=settings.images.redirect),
        safety or SafetyChecker.from_settings(settings.safety),
        tracer or start_tracing(settings.tracing),
    )
    tasks = TaskService(settings, services, checkpoint)

    app = DescribedApp(
        title="hyimage",
        openapi_url=None,  # server/api/docs.py has the page, without files from elsewhere
        lifespan=lambda _: _running(services, tasks, egress),
    )
    app.router.redirect_slashes = False  # some clients follow no redirect
    app.state.hyimage = AppState(
        settings=settings,
        keys=services.keys,
        tasks=tasks,
        store=services.store,
        images=services.images,
        metrics=services.metrics,
        sessions=Sessions(),
        background=Background(),
    )
    for module in (http, task_routes, status, image_routes, websocket, openai, docs, page):
        app.include_router(module.router)
    app.mount(docs.FILES_PATH, docs.FILES)
    add_fault_handlers(app)
    app.add_middleware(ServerFaults)
    app.add_middleware(BodyLimit, limit=settings.server.max_body_bytes)
    app.add_middleware(Cors, origins=settings.server.cors_origins)
    app.add_middleware(Traffic, metrics=services.metrics)
    app.add_middleware(AccessLog)
    return app


@asynccontextmanager
async def _running(
    services: RunnerServices, tasks: TaskService, egress: Egress
) -> AsyncIterator[None]:
    await services.engine.start()
    await tasks.open()
    calls = asyncio.create_task(services.webhooks.run())
    yield
    services.webhooks.stop()
    await calls
    await tasks.close()
    await egress.close()
    await services.tracer.close()


def _build_services(
    settings: Settings,
    checkpoint: CheckpointInfo,
    engine: Engine,
    egress: Egress,
    images: ImageStore,
    safety: SafetyChecker,
    tracer: Tracer,
) -> RunnerServices:
    metrics = Metrics()
    store = TaskStore(settings.tasks.database_url, settings.tasks.durability, metrics)
    return RunnerServices(
        engine=engine,
        store=store,
        keys=Keys.load(Path(settings.keys.file)),
        images=images,
        inputs=InputImages(settings, store, images, egress, checkpoint),
        webhooks=WebhookSender(
            settings.egress, store, egress, metrics, tracer, is_shared=settings.tasks.is_shared
        ),
        uploader=Uploader(settings.egress, egress),
        egress=egress,
        safety=safety,
        metrics=metrics,
        tracer=tracer,
    )
