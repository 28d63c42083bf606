"""Putting the server together; nothing is decided here."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from model.config import load_config
from model.resolution import list_offered_sizes
from server.api.http import router
from server.delivery.images import ImageStore
from server.engine.protocol import Engine
from server.settings import Settings
from server.tasks.service import TaskService


def create_app(settings: Settings, engine: Engine) -> FastAPI:
    """Return the application; the engine starts and stops with it.

    Raises:
        ConfigError: the checkpoint's config.json is missing or not usable.
    """
    config = load_config(Path(settings.worker.checkpoint))
    images = ImageStore(Path(settings.images.folder))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        yield
        await engine.stop()

    app = FastAPI(
        title="hyimage", description="HunyuanImage-3.0 behind Runware's API.", lifespan=lifespan
    )
    app.router.redirect_slashes = False  # some clients follow no redirect
    app.state.settings = settings
    app.state.images = images
    app.state.tasks = TaskService(
        settings, engine, images, list_offered_sizes(config.image_base_size)
    )
    app.include_router(router)
    return app
