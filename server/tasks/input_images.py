"""Input images of tasks: fetched and checked at admission, kept as bytes, handed to the job.

A task that another server takes over, or that runs again after a crash, gets the same bytes: a URL
is fetched once. Equal images of several tasks lie in the image store once.
"""

import asyncio
import base64
import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from model.resolution import Size
from pipeline.checkpoint_info import CheckpointInfo
from pipeline.input_image import InputImageError, verify_input_image
from server.delivery.egress import Egress, EgressError
from server.delivery.images import ImageStore, new_input_name
from server.runware.errors import TaskError
from server.runware.input_texts import (
    FORMS,
    InputText,
    decode_inline,
    hide,
    list_hidden,
    list_input_texts,
    show,
)
from server.runware.schemas import ImageInference
from server.settings import Settings
from server.tasks.admission import check_lengths
from server.tasks.input_table import InputTable
from server.tasks.store import TaskStore
from server.tasks.tables import StoredInput, TaskRow

# Images that are fetched at once, up to `inputs.max_bytes` each. Those that a task holds itself do
# not wait for a slow host.
MAX_FETCHES = 16

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ReadInput:
    """An input image that can be used. `head` stands before its bytes in the task, if they do."""

    parameter: str
    content: bytes = field(repr=False)
    sha256: str
    sides_wh: tuple[int, int]
    head: str | None


class InputImages:
    """Reads, keeps and hands out the input images of tasks."""

    def __init__(
        self,
        settings: Settings,
        store: TaskStore,
        images: ImageStore,
        egress: Egress,
        checkpoint: CheckpointInfo,
    ) -> None:
        self._limits = settings.inputs
        self._kept_s = max(settings.images.ttl_s, settings.tasks.retention_s)
        self._table = InputTable(store)
        self._images = images
        self._egress = egress
        self._checkpoint = checkpoint
        self._fetches = asyncio.Semaphore(MAX_FETCHES)
        # One thread: an image of 40 million pixels takes 160 MB while it is checked.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="input-check")

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False)

    # --- admission ---

    async def accept(
        self, task: ImageInference, sent: dict[str, Any], size: Size | None, base_url: str
    ) -> tuple[tuple[StoredInput, ...], dict[str, Any]]:
        """Return the images of a task, which are kept, and the task as sent without their bytes.

        Raises:
            TaskError: one of them cannot be used, or the prompt has no room for them.
        """
        inputs = await self.read(task, base_url)
        if not inputs:
            return (), sent
        check_lengths(task, self._checkpoint, size, [one.sides_wh for one in inputs])
        return await self._keep_all(inputs), hide(sent, [one.head for one in inputs])

    async def read(self, task: ImageInference, base_url: str) -> list[ReadInput]:
        """Return the images of a task in their order; those at URLs are fetched.

        Raises:
            TaskError: one cannot be used; it is named with its place.
        """
        texts = list_input_texts(task)
        return await self.read_all(texts, base_url) if texts else []

    async def read_all(self, texts: Sequence[InputText], base_url: str) -> list[ReadInput]:
        """Return these images, one after the other.

        Raises:
            TaskError: one cannot be used; it is named with its place.
        """
        return [await self._read(text, base_url) for text in texts]

    async def _keep_all(self, inputs: Sequence[ReadInput]) -> tuple[StoredInput, ...]:
        kept: list[StoredInput] = []
        for one in inputs:
            kept.append(
                StoredInput(
                    parameter=one.parameter,
                    name=await self._keep(one),
                    size_bytes=len(one.content),
                    pixels=self.count_pixels(one),
                )
            )
        return tuple(kept)

    def count_pixels(self, one: ReadInput) -> int:
        """Return as many pixels as an image's tokens stand for, which it is priced by."""
        return self._checkpoint.input_tokens(*one.sides_wh) * self._checkpoint.pixels_per_token**2

    async def _keep(self, one: ReadInput) -> str:
        now, new_name = time.time(), new_input_name(one.sha256)
        name = await self._table.find_or_reserve(one.sha256, new_name, now, now + self._kept_s)
        if name == new_name:
            await self._images.save(name, one.content)
            await self._table.complete(name, one.sha256)
        return name

    async def _read(self, text: InputText, base_url: str) -> ReadInput:
        head: str | None = None
        match text.kind:
            case "uuid":
                content = await self._load_image(text)
            case "url" if text.text.startswith(f"{base_url}/images/"):
                content = await self._load_image(text)
            case "url":
                content = await self._fetch(text)
            case _:
                head, content = await self._in_thread(self._decode, text)
        sha256, sides_wh = await self._in_thread(self._check, text, content)
        return ReadInput(text.parameter, content, sha256, sides_wh, head)

    async def _load_image(self, text: InputText) -> bytes:
        """Return the bytes of an image that is kept here."""
        image_uuid = text.text.rpartition("/")[2][:36].lower()
        name = await self._table.find_image(image_uuid, time.time())
        content = None if name is None else await self._images.load(name)
        if content is None:
            raise text.refusal(
                "No image is kept here under that UUID: it has expired, or it never was; upload it "
                "with an imageUpload task, or send the image itself"
            )
        return content

    async def _fetch(self, text: InputText) -> bytes:
        limits = self._limits
        try:
            async with self._fetches:
                return await self._egress.fetch(text.text, limits.max_bytes, limits.fetch_timeout_s)
        except EgressError as e:
            raise text.refusal(
                f"The image cannot be fetched: {e}. Send another URL, or the image itself as a "
                "data URI"
            ) from None

    async def _in_thread(self, work: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def _decode(self, text: InputText) -> tuple[str | None, bytes]:
        """Return the bytes of an image that is in the task, and what stands before them.

        Without that if the same text cannot be made of the bytes again.
        """
        if len(text.text) * 3 // 4 > self._limits.max_bytes + 1024:
            raise self._too_large(text, f"about {len(text.text) * 3 // 4}")
        try:
            head, content = decode_inline(text.text)
        except ValueError as e:
            raise text.refusal(str(e)) from None
        is_plain = text.text[len(head) :] == base64.b64encode(content).decode("ascii")
        return (head if is_plain else None), content

    def _check(self, text: InputText, content: bytes) -> tuple[str, tuple[int, int]]:
        if len(content) > self._limits.max_bytes:
            raise self._too_large(text, str(len(content)))
        if not content:
            raise text.refusal(f"The image is empty, 0 bytes; send {FORMS}")
        if content[:512].lstrip().lower().startswith((b"<!doctype html", b"<html")):
            raise text.refusal(
                "It is an HTML page and not an image; send the address of the image file itself"
            )
        try:
            sides_wh = verify_input_image(content, "The image")
        except InputImageError as e:
            raise text.refusal(str(e)) from None
        return hashlib.sha256(content).hexdigest(), sides_wh

    def _too_large(self, text: InputText, size: str) -> TaskError:
        return text.refusal(
            f"The image has {size} bytes; at most {self._limits.max_bytes} are taken "
            "(inputs.max_bytes). Send it smaller, or as JPEG"
        )

    # --- later ---

    async def load(self, inputs: Sequence[StoredInput]) -> tuple[bytes, ...]:
        """Return the bytes of a stored task's images.

        Raises:
            TaskError: the image store does not work, or has them no more.
        """
        contents: list[bytes] = []
        for one in inputs:
            content = await self._images.load(one.name)
            if content is None:
                raise TaskError(
                    "internalServerError",
                    f"The image of '{one.parameter}' is gone from the image store; send the task "
                    "again under a new UUID.",
                    one.parameter,
                )
            contents.append(content)
        return tuple(contents)

    async def restore(self, row: TaskRow) -> dict[str, Any]:
        """Return a stored task as its client sent it."""
        if not row.inputs or not (places := list_hidden(row.request)):
            return row.request
        inputs = row.stored_inputs
        found = {place: await self._images.load(inputs[place].name) for place in places}
        contents = {place: content for place, content in found.items() if content is not None}
        return await asyncio.to_thread(show, row.request, contents)

    async def sweep(self) -> None:
        """Delete bytes whose time is over and that no running task needs.

        Raises:
            TaskError: a store does not work; what is left is deleted next time.
        """
        names = await self._table.take_expired(time.time())
        if names:
            await self._images.delete(names)
            await self._table.forget(names)
