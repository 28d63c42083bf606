"""Input images as clients write them: UUIDs, URLs, data URIs and base64 text.

A stored task does not repeat the bytes of its images: `hide` puts a short text in the place of each
that was sent with the task, and `show` what was sent.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from server.runware.errors import TaskError
from server.runware.schemas import ImageInference

FORMS = "a UUID of an image here, an http or https URL, a data URI, or base64 text"
MAX_SHOWN = 80  # characters of a faulty value that an error repeats

_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)
_URL = re.compile(r"https?://", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_HIDDEN = re.compile(r"stored-input:(\d+):(.*)", re.DOTALL)  # no base64 text has a colon
INPUT_NAMES = ("seedImage", "referenceImages")

Kind = Literal["uuid", "url", "inline"]


@dataclass(frozen=True, slots=True)
class InputText:
    """One input image as it was sent; `parameter` names it with its place."""

    parameter: str
    text: str

    @property
    def kind(self) -> Kind:
        """Whether it names an image that is kept here, one elsewhere, or holds the image."""
        if _UUID.fullmatch(self.text):
            return "uuid"
        return "url" if _URL.match(self.text) else "inline"

    def refusal(self, reason: str) -> TaskError:
        """Return the error for an image that cannot be used."""
        name = self.parameter.partition("[")[0]
        text = self.text
        shown = f"'{text}'" if len(text) <= MAX_SHOWN else f"'{text[:40]}...' ({len(text)} letters)"
        return TaskError(
            f"invalid{name[0].upper()}{name[1:]}",
            f"Invalid value for '{self.parameter}' parameter. {reason}. Got {shown}.",
            self.parameter,
            {"type": "string"},
        )


def list_input_texts(task: ImageInference) -> list[InputText]:
    """Return the input images of a task in the order of the prompt: the seed image is the first."""
    seed = [] if task.seedImage is None else [InputText("seedImage", task.seedImage)]
    references = enumerate(task.referenceImages)
    return seed + [InputText(f"referenceImages[{i}]", text) for i, text in references]


def decode_inline(text: str) -> tuple[str, bytes]:
    """Return what stands before the base64 text of a data URI, and the bytes of the image.

    Raises:
        ValueError: it is neither a data URI nor base64 text; the message says what is wrong.
    """
    if _SCHEME.match(text):
        raise ValueError(f"Only http and https URLs are fetched; send {FORMS}")
    head, body = "", text
    if text[:5].lower() == "data:":
        head, comma, body = text.partition(",")
        head += comma
        if "svg" in head.lower():
            raise ValueError("The image is SVG, which is not pixels; send it as PNG")
        if not head.lower().endswith(";base64,"):
            raise ValueError("The data URI must begin like data:image/png;base64,")
    try:
        return head, base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"It is not base64 text; send {FORMS}") from None


def hide(task: Mapping[str, Any], heads: Sequence[str | None]) -> dict[str, Any]:
    """Return a task without the bytes of its images; `heads` stand before them, None for others.

    The heads are in the order of `list_input_texts`.
    """
    places = iter(enumerate(heads))

    def hidden(text: str) -> str:
        index, head = next(places)
        return text if head is None else f"stored-input:{index}:{head}"

    return _changed(task, hidden)


def list_hidden(task: Mapping[str, Any]) -> set[int]:
    """Return the places of the images of a stored task whose bytes it does not repeat."""
    found: set[int] = set()

    def note(text: str) -> str:
        if (match := _HIDDEN.fullmatch(text)) is not None:
            found.add(int(match[1]))
        return text

    _changed(task, note)
    return found


def show(task: Mapping[str, Any], contents: Mapping[int, bytes]) -> dict[str, Any]:
    """Return a stored task as it was sent; `contents` are the images' bytes by place.

    In the place of bytes that are gone it says so.
    """

    def shown(text: str) -> str:
        match = _HIDDEN.fullmatch(text)
        if match is None:
            return text
        content = contents.get(int(match[1]))
        encoded = "(expired)" if content is None else base64.b64encode(content).decode("ascii")
        return match[2] + encoded

    return _changed(task, shown)


def _changed(task: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Return a task with each text of an input image changed, wherever it was sent."""
    copy = dict(task)
    holders = [copy]
    if isinstance(nested := copy.get("inputs"), dict):
        holders.append(dict(nested))
        copy["inputs"] = holders[-1]
    for name in INPUT_NAMES:
        for holder in holders:
            value = holder.get(name)
            if isinstance(value, str):
                holder[name] = change(value)
            elif isinstance(value, list):
                holder[name] = [change(text) for text in value]
    return copy
