"""The settings file: TOML whose relative paths start at its own folder, not where one stands."""

import os
import tomllib
from pathlib import Path
from typing import Any

# Settings that are paths, or URLs of other places.
_PATHS = (
    ("server", "data_dir"),
    ("worker", "checkpoint"),
    ("images", "store"),
    ("tasks", "database_url"),
    ("keys", "file"),
)
_SQLITE = "sqlite:///"
# Settings whose default lies in server.data_dir, and where.
IN_DATA_DIR = {
    ("images", "store"): "images",
    ("tasks", "database_url"): f"{_SQLITE}tasks.db",
    ("keys", "file"): "keys.json",
}


def read_settings_file(file: Path) -> dict[str, Any]:
    """Return the values of a file, with absolute paths; its data lie beside it by default.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not TOML.
    """
    values = tomllib.loads(file.read_text(encoding="utf-8"))
    folder = file.absolute().parent
    for section, field in _PATHS:
        given = values.get(section)
        if isinstance(given, dict) and isinstance(given.get(field), str):
            given[field] = place(given[field], folder)
    server = values.setdefault("server", {})
    if isinstance(server, dict):
        server.setdefault("data_dir", place("data", folder))
    return values


def place_data(values: dict[str, Any]) -> dict[str, Any]:
    """Return settings with what is stored in `server.data_dir`, unless they say where."""
    server = values.get("server", {})
    data_dir = server.get("data_dir", "data") if isinstance(server, dict) else "data"
    placed = dict(values)
    for (section, field), name in IN_DATA_DIR.items():
        given = placed.get(section, {})
        if isinstance(given, dict) and isinstance(data_dir, str):
            placed[section] = {field: place(name, Path(data_dir)), **given}
    return placed


def place(path: str, folder: Path) -> str:
    """Return a path, or the URL of an SQLite file, as seen from a folder; other URLs unchanged."""
    if path.startswith(_SQLITE) and len(path) > len(_SQLITE):
        return f"{_SQLITE}{place(path.removeprefix(_SQLITE), folder)}"
    if "://" in path or path == ":memory:":
        return path
    return os.path.normpath(folder / path)
