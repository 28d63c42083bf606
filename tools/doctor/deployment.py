"""Checks of the settings on this machine: address and port, keys, data folder, stores."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from server.listening import listen
from server.serve import check_exposure
from server.settings import Settings, SettingsError
from server.tasks.keys import Keys
from tools.doctor.check import Check

MIN_FREE_BYTES = 2**30  # an image of 1024x1024 takes some 2 MB as PNG


def check_deployment(settings: Settings) -> Iterator[Check]:
    """Yield whether a server with these settings could start here."""
    yield _check_port(settings)
    yield _check_exposure(settings)
    yield _check_data(Path(settings.server.data_dir))
    for name, url in (
        ("tasks.database_url", settings.tasks.database_url),
        ("images.store", settings.images.store),
    ):
        if "://" in url and not url.startswith(("sqlite:", "file:")):
            scheme = url.partition(":")[0]
            yield Check(
                name=name, status="ok", sentence=f"{scheme}, which the server reaches at start"
            )


def _check_port(settings: Settings) -> Check:
    host, port = settings.server.host, settings.server.port
    try:
        for one in listen(host, port):
            one.close()
    except SettingsError as e:
        return Check(
            name="port",
            status="fail",
            sentence=str(e),
            next_step=f"hyimage status http://127.0.0.1:{port} says if it is a server of ours",
        )
    return Check(name="port", status="ok", sentence=f"{host}:{port} can be had")


def _check_exposure(settings: Settings) -> Check:
    try:
        check_exposure(settings)
    except SettingsError as e:
        return Check(name="keys", status="fail", sentence=str(e), next_step="hyimage keys add NAME")
    has_keys = bool(Keys.load(Path(settings.keys.file)))
    who = "whoever has a key" if has_keys else "whoever reaches this address"
    return Check(name="keys", status="ok", sentence=f"{settings.server.host} serves {who}")


def _check_data(folder: Path) -> Check:
    """Return whether files can be made in a folder, or where it would be made."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"doctor")
    except OSError as e:
        return Check(
            name="data",
            status="fail",
            sentence=f"{folder} cannot be written ({e.strerror})",
            next_step="give it to the user that serves, or set server.data_dir",
        )
    free = shutil.disk_usage(existing).free
    sentence = f"{folder} can be written, {free / 1e9:.1f} GB free"
    if free < MIN_FREE_BYTES:
        return Check(
            name="data",
            status="warn",
            sentence=sentence,
            next_step="free some, or lower images.ttl_s and tasks.retention_s",
        )
    return Check(name="data", status="ok", sentence=sentence)
