"""Start the HTTP server on the local engine."""

import logging
from pathlib import Path

import uvicorn

from server.api.auth import ENVIRONMENT, Keys
from server.app import create_app
from server.engine.local import LocalEngine
from server.import_guard import check_imports
from server.runware.errors import TaskError
from server.settings import Settings, SettingsError

log = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT_S = 30


def serve_forever(settings: Settings) -> None:
    """Listen until stopped by a signal.

    Raises:
        SettingsError: it would listen beyond loopback without any key.
        ConfigError: the checkpoint's configuration is missing or not usable.
        TaskError: the worker could not load the checkpoint.
    """
    check_imports()
    check_exposure(settings)
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
            access_log=False,  # server/api/access_log.py writes the line, with the request's id
            ws_max_size=settings.server.max_body_bytes,
            ws_per_message_deflate=False,  # images do not shrink, and it blocks the event loop
            proxy_headers=settings.server.trust_proxy_headers,
            forwarded_allow_ips="*" if settings.server.trust_proxy_headers else None,
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


def check_exposure(settings: Settings) -> None:
    """Refuse to let anybody draw who reaches this address.

    Raises:
        SettingsError: it would listen beyond loopback without any key.
    """
    host = settings.server.host
    is_loopback = host in ("localhost", "::1") or host.startswith("127.")
    if not (
        is_loopback or settings.server.allow_unauthenticated or Keys.load(Path(settings.keys.file))
    ):
        raise SettingsError(
            f"listening on {host} without an API key would let anybody draw; add a key with "
            f"`hyimage keys add NAME` or {ENVIRONMENT}, or set server.allow_unauthenticated = true"
        )
