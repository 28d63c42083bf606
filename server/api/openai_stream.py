"""Streaming in the OpenAI form: partial images while an image is generated, then the image.

Source: "Image streaming events" of the OpenAI API reference.
"""

import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi.sse import EventSourceResponse, format_sse_event

from server.api.dispatch import Caller, admit_task, cancel_abandoned, stopping_error
from server.api.openai_errors import error_object
from server.api.openai_request import ImageGeneration
from server.api.state import AppState
from server.runware.envelope import as_task_error, http_status
from server.runware.errors import TaskError
from server.tasks.events import ENDS


async def stream_images(
    state: AppState, task: dict[str, Any], caller: Caller, body: ImageGeneration
) -> EventSourceResponse:
    """Admit a task, and return the stream of its images.

    Raises:
        TaskError: the task was refused.
    """
    parameters, task_uuid = await admit_task(state, task, caller)
    stream = _Stream(state, caller, body, parameters.steps)
    return EventSourceResponse(stream.events(task_uuid))


class _Stream:
    def __init__(
        self, state: AppState, caller: Caller, body: ImageGeneration, num_steps: int
    ) -> None:
        self._state = state
        self._caller = caller
        self._body = body
        # Of each image, spread over its steps: 1 of 2 parts, 1 and 2 of 3 ...
        parts = body.partial_images + 1
        self._steps = [num_steps * part // parts for part in range(1, parts)]
        self._num_sent: dict[int, int] = {}

    async def events(self, task_uuid: str) -> AsyncIterator[bytes]:
        """Yield the events as bytes; a client that hangs up ends the task."""
        has_ended = False
        client, reader = self._caller.client, self._state.tasks.reader
        stored = await reader.find(task_uuid, client)
        try:
            with_previews = bool(self._steps)
            events = reader.events(stored, client, "", with_previews=with_previews)
            async for _, kind, values in events:
                has_ended = kind in ENDS
                if kind == "preview":
                    for event in self._partial(values):
                        yield event
                elif kind == "image":
                    size = await reader.generated_size(task_uuid, client)
                    yield self._completed(values, size)
                elif kind in ("failed", "cancelled"):
                    yield self._failed(as_task_error(values["error"]))
            if not has_ended:
                yield self._failed(stopping_error())
        finally:
            is_kept = self._state.settings.server.cancel_on_disconnect == "never"
            if not (has_ended or is_kept):
                abandoned = cancel_abandoned(self._state, task_uuid, client)
                self._state.background.spawn(abandoned)

    def _failed(self, failure: TaskError) -> bytes:
        self._state.count_error(failure)
        error = error_object(failure, http_status(failure.code))
        return _encode("error", {"type": "error", "error": error})

    def _partial(self, values: dict[str, Any]) -> list[bytes]:
        """Return the partial image that is due at a step, if one is."""
        image, step = values["image"], values["step"]
        index = self._num_sent.get(image, 0)
        if index >= len(self._steps) or step < self._steps[index]:
            return []
        self._num_sent[image] = index + 1
        content = values["dataURI"].partition(",")[2]
        fields = {"b64_json": content, "partial_image_index": index, "size": self._body.size}
        return [self._event("partial_image", fields)]

    def _completed(self, item: dict[str, Any], size: str | None) -> bytes:
        fields = {"b64_json": item["imageBase64Data"], "size": size}
        return self._event("completed", fields)

    def _event(self, name: str, fields: dict[str, Any]) -> bytes:
        kind = f"{self._body.event_prefix}.{name}"
        common = {
            "type": kind,
            "created_at": int(time.time()),
            "background": "opaque",
            "output_format": self._body.output_format,
            "quality": self._body.drawn_quality,
        }
        return _encode(kind, common | fields)


def _encode(kind: str, values: dict[str, Any]) -> bytes:
    return format_sse_event(data_str=json.dumps(values), event=kind)
