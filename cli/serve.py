"""`hyimage serve`: the API on this machine, or on a Ray cluster."""

from typing import Annotated

import typer

from cli.options import CheckpointOption, ConfigOption, reported_errors
from server.logs import Form, Level
from server.settings import SettingsError, load_settings


def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    checkpoint: CheckpointOption = None,
    log_level: Annotated[
        Level | None, typer.Option(help="Least level of log lines; debug shows probes, too.")
    ] = None,
    log_format: Annotated[
        Form | None, typer.Option(help="Log lines as text, or as one JSON object each.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Address of a Ray cluster (auto, HOST:6379, ray://HOST:10001): serve there, or "
            "replace what serves there replica by replica, and return. See docs/cluster.md."
        ),
    ] = None,
    down: Annotated[
        bool, typer.Option("--down", help="With --cluster: stop serving there.")
    ] = False,
) -> None:
    """Serve the API: POST /v1, GET /ready, interactive documentation at /docs.

    Example: hyimage serve --config configs/tiny.toml --port 9000
    """
    with reported_errors():
        settings = load_settings(
            config,
            server__host=host,
            server__port=port,
            worker__checkpoint=checkpoint,
            logging__level=log_level,
            logging__format=log_format,
        )
        if cluster is not None:
            from server.cluster.deploy import deploy, take_down

            take_down(cluster) if down else deploy(settings, cluster)
            return
        if down:
            raise SettingsError("--down needs --cluster: a server here is stopped with Ctrl-C")
        from server.serve import serve_forever

        serve_forever(settings)
