"""The image store: finished images as files, under names that cannot be guessed."""

import asyncio
import logging
import re
import secrets
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import TypeVar

import fsspec

from server.runware.errors import TaskError
from server.settings import SettingsError

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# A random UUID v4 has 122 random bits.
_NAME = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\.(jpg|png|webp)"
)

# Input images of tasks: never served, so their names need no extension.
_INPUT_NAME = re.compile(r"input-[0-9a-f]{64}-[0-9a-f]{8}")

MEDIA_TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}


def is_image_name(name: str) -> bool:
    """Return whether a name is one that this server gives to images."""
    return _NAME.fullmatch(name) is not None


def new_input_name(sha256: str) -> str:
    """Return a name for an input image with this digest. No file ever gets a name again."""
    return f"input-{sha256}-{secrets.token_hex(4)}"


def media_type(name: str) -> str:
    """Return the Content-Type of a stored image."""
    return MEDIA_TYPES[name.rsplit(".", 1)[-1]]


class ImageStore:
    """A folder, or any store that fsspec reaches by URL. All of its I/O runs in threads.

    Every call raises a TaskError, serviceUnavailable, if the store cannot be reached.
    """

    def __init__(self, url: str, *, is_signing: bool = False) -> None:
        """Connect to the store; one that is signing hands out URLs of its own.

        Raises:
            SettingsError: the URL names a protocol that is not installed or not known, or a store
                that cannot sign.
        """
        self.is_signing = is_signing
        self._is_local = "://" not in url or url.startswith("file://")
        options = {"auto_mkdir": True} if self._is_local else {}
        try:
            self._filesystem, self._root = fsspec.core.url_to_fs(url, **options)
        except (ImportError, ValueError) as e:
            raise SettingsError(
                f"images.store {url!r} cannot be used: {e}; write a folder, or s3://BUCKET/PREFIX "
                "with the extra s3 installed"
            ) from None
        if is_signing and type(self._filesystem).sign is fsspec.AbstractFileSystem.sign:
            raise SettingsError(
                f"images.redirect needs a store that signs URLs, as s3://BUCKET/PREFIX does, and "
                f"images.store is {url!r}; set images.redirect = false"
            )

    async def save(self, name: str, encoded: bytes) -> None:
        """Keep an image under a name of its own; a reader never sees half of it."""
        await self._run(self._write, name, encoded)

    async def load(self, name: str) -> bytes | None:
        """Return an image's bytes, or None if there is none by that name."""
        if not (is_image_name(name) or _INPUT_NAME.fullmatch(name)):
            return None
        return await self._run(self._read, name)

    async def sign(self, name: str, seconds: int) -> str:
        """Return a URL at which the store itself serves an image for a while."""
        path = f"{self._root}/{name}"
        return str(await self._run(partial(self._filesystem.sign, path, expiration=seconds)))

    async def delete(self, names: Iterable[str]) -> None:
        """Delete images; missing ones are not an error."""
        await self._run(self._remove, list(names))

    async def _run(self, operation: Callable[..., Result], *arguments: object) -> Result:
        try:
            return await asyncio.to_thread(operation, *arguments)
        except _store_errors() as e:
            log.error("the image store does not work: %s: %s", type(e).__name__, e)
            message = "The image store cannot be reached; try again later."
            raise TaskError("serviceUnavailable", message) from None

    def _write(self, name: str, encoded: bytes) -> None:
        path = f"{self._root}/{name}"
        if self._is_local:
            self._filesystem.pipe_file(f"{path}.part", encoded)
            self._filesystem.mv(f"{path}.part", path)
        else:  # an object appears as a whole or not at all; its type serves direct readers
            self._filesystem.pipe_file(path, encoded, **self._type_option(name))

    def _type_option(self, name: str) -> dict[str, str]:
        is_served = "s3" in self._filesystem.protocol and is_image_name(name)
        return {"ContentType": media_type(name)} if is_served else {}

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


@lru_cache
def _store_errors() -> tuple[type[Exception], ...]:
    """Return what stores raise when they do not work; the s3 extra brings its own."""
    try:
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return (OSError,)
    return OSError, BotoCoreError, ClientError
