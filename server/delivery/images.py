"""Finished pictures as files, under names that cannot be guessed."""

import asyncio
import os
import re
from pathlib import Path

_NAME = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\.(jpg|png|webp)"
)

MEDIA_TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}


class ImageStore:
    """A folder of pictures. Disk work happens in threads, never on the event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def save(self, name: str, encoded: bytes) -> None:
        """Keep a picture under `name` = UUID.extension; a reader never sees half of it."""
        await asyncio.to_thread(self._write, name, encoded)

    async def find(self, name: str) -> Path | None:
        """Return the file of a picture, or None if there is none by that name."""
        if not _NAME.fullmatch(name):
            return None
        path = self._folder / name
        return path if await asyncio.to_thread(path.is_file) else None

    def _write(self, name: str, encoded: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._folder / f".{name}.part"
        partial.write_bytes(encoded)
        os.replace(partial, self._folder / name)
