"""Start the HTTP server on the local engine."""

import logging

import uvicorn

from server.api.app import create_app
from server.engine.local import LocalEngine
from server.errors import TaskError
from server.origin import check_origin
from server.settings import Settings

log = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT_S = 30


def serve_forever(settings: Settings) -> None:
    """Listen until stopped by a signal.

    Raises:
        ConfigError: the checkpoint's configuration is missing or not usable.
        TaskError: the worker could not load the checkpoint.
    """
    check_origin()
    failures: list[str] = []

    def stop_server(message: str) -> None:
        failures.append(message)
        server.should_exit = True

    app = create_app(settings, LocalEngine(settings.worker, on_failed=stop_server))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=settings.server.host,
            port=settings.server.port,
            log_level="info",
            timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
        )
    )
    log.info(
        "serving %s from %s on http://%s:%d/v1",
        settings.api.model,
        settings.worker.checkpoint,
        settings.server.host,
        settings.server.port,
    )
    server.run()
    if failures:
        raise TaskError("workerFailed", failures[0])
