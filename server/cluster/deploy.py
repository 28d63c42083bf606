"""Deployment on a Ray cluster: serve there, or stop serving there."""

import logging
import os
import socket

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions, ProxyLocation

from server.cluster.deployments import build_application
from server.cluster.engine import APPLICATION
from server.runware.errors import TaskError
from server.settings import Settings, SettingsError

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0


def deploy(settings: Settings, address: str) -> None:
    """Serve on a cluster, and return when all replicas are ready.

    Where it is served already, replicas are replaced one after another: a rolling restart, with
    the present settings.

    Raises:
        SettingsError: the cluster is not there, or the settings do not suit one.
        TaskError: a replica cannot start.
    """
    application = build_application(settings)
    if settings.tasks.database_url.startswith("sqlite"):
        log.warning("tasks.database_url is an SQLite file: right only if all nodes are one machine")
    _connect(address)
    server = settings.server
    serve.start(
        proxy_location=ProxyLocation.EveryNode,
        http_options=HTTPOptions(host=server.host, port=server.port),
    )
    log.info("starting %s; an engine is ready when its checkpoint is loaded", APPLICATION)
    try:
        serve.run(application, name=APPLICATION, route_prefix="/")
    except RuntimeError:
        raise TaskError("workerFailed", _explain()) from None
    finally:
        ray.shutdown()
    log.info(
        "serving %s on port %d of every node; stop: hyimage serve --cluster %s --down",
        settings.api.model,
        server.port,
        address,
    )


def take_down(address: str) -> None:
    """Stop serving on a cluster; what is not finished stays in the task store.

    Raises:
        SettingsError: the cluster is not there.
    """
    _connect(address)
    serve.delete(APPLICATION)
    if not serve.status().applications:  # others may serve there too
        serve.shutdown()
    ray.shutdown()
    log.info("%s is not served on %s any more", APPLICATION, address)


def _connect(address: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (RayError, OSError, ValueError, ImportError) as e:
        reason = str(e).partition("\n")[0]
        raise SettingsError(
            f"there is no Ray cluster at {address!r} ({reason}); start one with "
            "`ray start --head --disable-usage-stats`, or give --cluster its address"
        ) from None


def _explain() -> str:
    """Return why the application does not run, in Ray Serve's words."""
    status = serve.status().applications[APPLICATION]
    reasons = [f"{name}: {d.message}" for name, d in status.deployments.items() if d.message]
    return "the application does not run: " + ("; ".join(reasons) or status.message)
