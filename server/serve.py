"""The HTTP server of one machine, on the local engine: start, drain, stop."""

import logging
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import uvicorn

from server.api.state import AppState
from server.app import create_app
from server.engine.local import LocalEngine
from server.import_guard import check_imports
from server.listening import listen
from server.process import configure_process
from server.runware.errors import TaskError
from server.settings import Settings, SettingsError
from server.tasks.data_lock import locked_data
from server.tasks.keys import ENVIRONMENT, Keys

log = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT_S = 30
SAME_SIGNAL_S = 0.5
LATE_SHUTDOWN_S = 5


class DrainingServer(uvicorn.Server):
    """A uvicorn server that SIGTERM drains first.

    At once new tasks and `/ready` get 503, while it still listens, so that a gateway sends its
    requests elsewhere. When the running tasks are finished, or after `drain_s`, it stops. Any other
    signal, and a later SIGTERM, stop it as uvicorn does.
    """

    def __init__(self, config: uvicorn.Config, state: AppState) -> None:
        super().__init__(config)
        self._settings = state.settings
        self._tasks = state.tasks
        self._drained_since: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then accept connections."""
        await super().startup(sockets)
        for one in sockets or ():
            host, port = one.getsockname()[:2]
            log.info(
                "serving %s from %s on http://%s:%d/v1",
                self._settings.api.model,
                self._settings.worker.checkpoint,
                f"[{host}]" if ":" in host else host,
                port,
            )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain, or stop."""
        now = time.monotonic()
        self._tasks.drain()
        if sig == signal.SIGTERM and self._drained_since is None:
            self._drained_since = now
            log.info("SIGTERM: running tasks may finish within %g s", self._settings.server.drain_s)
        # `timeout` of coreutils sends one to the process, and one to its group.
        elif sig != signal.SIGTERM or now > (self._drained_since or 0) + SAME_SIGNAL_S:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Return whether to stop; called ten times a second."""
        if self._drained_since is not None:
            is_late = time.monotonic() > self._drained_since + self._settings.server.drain_s
            if is_late:
                self.config.timeout_graceful_shutdown = LATE_SHUTDOWN_S
            self.should_exit |= is_late or not self._tasks.num_running_tasks
        return await super().on_tick(counter)


def serve_forever(settings: Settings) -> None:
    """Listen until stopped by a signal.

    The port and the data are taken first: a server that cannot have them loads nothing and takes
    no tasks over.

    Raises:
        SettingsError: it would listen beyond loopback without any key, or the port or the data is
            another server's.
        ConfigError: the checkpoint's configuration is missing or not usable.
        TaskError: the worker could not load the checkpoint.
    """
    configure_process(settings.logging.level, settings.logging.format)
    check_imports()
    check_exposure(settings)
    with ExitStack() as held:
        sockets = listen(settings.server.host, settings.server.port)
        for one in sockets:
            held.enter_context(one)
        held.enter_context(locked_data(settings.tasks))
        _serve(settings, sockets)


def _serve(settings: Settings, sockets: list[socket.socket]) -> None:
    failures: list[str] = []

    def stop_server(message: str) -> None:
        failures.append(message)
        server.should_exit = True

    app = create_app(settings, LocalEngine(settings.worker, stop_server, settings.logging))
    config = uvicorn.Config(
        app,
        log_config=None,  # its lines in our format, and only those that need somebody's attention
        log_level="warning",
        access_log=False,  # server/api/access_log.py writes the line, with the request's id
        ws_max_size=settings.server.max_body_bytes,
        ws_per_message_deflate=False,  # images do not shrink, and it blocks the event loop
        proxy_headers=settings.server.trust_proxy_headers,
        forwarded_allow_ips="*" if settings.server.trust_proxy_headers else None,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
    )
    server = DrainingServer(config, app.state.hyimage)
    server.run(sockets)
    if failures:
        raise TaskError("workerFailed", failures[0])


def check_exposure(settings: Settings) -> None:
    """Refuse to serve everybody who reaches an address beyond loopback.

    Raises:
        SettingsError: it would listen beyond loopback without any key.
    """
    host = settings.server.host
    is_loopback = host in ("localhost", "::1") or host.startswith("127.")
    if not (
        is_loopback or settings.server.allow_unauthenticated or Keys.load(Path(settings.keys.file))
    ):
        raise SettingsError(
            f"listening on {host} without an API key would serve everybody; add a key with "
            f"`hyimage keys add NAME` or {ENVIRONMENT}, or set server.allow_unauthenticated = true"
        )
