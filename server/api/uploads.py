"""Uploads: images that clients send, checked and kept."""

import base64
import binascii
import re
import uuid
from typing import Any, Literal

from server.runware.envelope import echo_uuid
from server.runware.errors import TaskError
from server.tasks.reader import Client
from server.tasks.service import TaskService

_DATA_URI = re.compile(r"data:image/(png|jpeg|webp);base64,", re.IGNORECASE)
_EXTENSIONS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"RIFF": "webp"}


async def store_upload(
    tasks: TaskService, task: dict[str, Any], parameter: Literal["image", "media"], client: Client
) -> dict[str, Any]:
    """Keep an image that a client sends as a data URI or base64 text; return the task's item.

    Raises:
        TaskError: there is no image, or it is not one, or the image store does not work.
    """
    value = task.get(parameter)
    if not isinstance(value, str):
        raise TaskError(
            f"missing{parameter.capitalize()}",
            f"Missing required parameter: '{parameter}', a data URI or base64 text.",
            parameter,
        )
    try:
        content = base64.b64decode(_DATA_URI.sub("", value, count=1), validate=True)
    except (binascii.Error, ValueError):
        content = b""
    extension = next((e for magic, e in _EXTENSIONS.items() if content.startswith(magic)), None)
    if extension is None:
        raise TaskError(
            f"invalid{parameter.capitalize()}",
            f"Invalid value for '{parameter}' parameter. It must be a PNG, JPEG or WEBP image as "
            "a data URI or base64 text.",
            parameter,
        )
    image_uuid = str(uuid.uuid4())
    name = f"{image_uuid}.{extension}"
    await tasks.keep_upload(image_uuid, name, content)
    return {
        "taskType": task["taskType"],
        **echo_uuid(task),
        f"{parameter}UUID": image_uuid,
        f"{parameter}URL": f"{client.base_url}/images/{name}",
    }
