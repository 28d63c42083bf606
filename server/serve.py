"""Start the HTTP server on the local engine."""

import logging

import uvicorn

from server.api.app import create_app
from server.engine.local import LocalEngine
from server.origin import check_origin
from server.settings import Settings

log = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT_S = 30


def serve_forever(settings: Settings) -> None:
    """Listen until stopped by a signal.

    Raises:
        ConfigError: the checkpoint's configuration is missing or not usable.
    """
    check_origin()
    app = create_app(settings, LocalEngine(settings.worker))
    log.info(
        "serving %s from %s on http://%s:%d/v1",
        settings.api.model,
        settings.worker.checkpoint,
        settings.server.host,
        settings.server.port,
    )
    uvicorn.run(
        app,
        host=settings.server.host,
        port=settings.server.port,
        log_level="info",
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
    )
