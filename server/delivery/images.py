"""Finished pictures as files, under names that cannot be guessed."""

import asyncio
import re
from collections.abc import Iterable

import fsspec

# A random UUID v4 has 122 random bits.
_NAME = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\.(jpg|png|webp)"
)

MEDIA_TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}


def media_type(name: str) -> str:
    """Return the Content-Type of a stored picture."""
    return MEDIA_TYPES[name.rsplit(".", 1)[-1]]


class ImageStore:
    """A folder, or any place that fsspec reaches by URL. All of it runs in threads."""

    def __init__(self, url: str) -> None:
        self._filesystem, self._root = fsspec.core.url_to_fs(url, auto_mkdir=True)

    async def save(self, name: str, encoded: bytes) -> None:
        """Keep a picture under `name` = UUID.extension; a reader never sees half of it."""
        await asyncio.to_thread(self._write, name, encoded)

    async def load(self, name: str) -> bytes | None:
        """Return a picture's bytes, or None if there is none by that name."""
        if not _NAME.fullmatch(name):
            return None
        return await asyncio.to_thread(self._read, name)

    async def delete(self, names: Iterable[str]) -> None:
        """Delete pictures; those that are gone already are none's concern."""
        await asyncio.to_thread(self._remove, list(names))

    def _write(self, name: str, encoded: bytes) -> None:
        partial = f"{self._root}/{name}.part"
        self._filesystem.pipe_file(partial, encoded)
        self._filesystem.mv(partial, f"{self._root}/{name}")

    def _read(self, name: str) -> bytes | None:
        try:
            content: bytes = self._filesystem.cat_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return None
        return content

    def _remove(self, names: list[str]) -> None:
        for name in names:
            try:
                self._filesystem.rm_file(f"{self._root}/{name}")
            except FileNotFoundError:
                continue
