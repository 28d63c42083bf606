"""Uploads: images that clients send, checked and kept."""

import uuid
from typing import Any, Literal

from server.runware.envelope import echo_uuid
from server.runware.errors import TaskError
from server.runware.input_texts import InputText
from server.tasks.reader import Client
from server.tasks.service import TaskService

_EXTENSIONS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"RIFF": "webp"}


async def store_upload(
    tasks: TaskService, task: dict[str, Any], parameter: Literal["image", "media"], client: Client
) -> dict[str, Any]:
    """Keep an image that a client sends, or whose URL; return the task's item.

    Raises:
        TaskError: there is no image, or it cannot be used, or the image store does not work.
    """
    value = task.get(parameter)
    if not isinstance(value, str):
        raise TaskError(
            f"missing{parameter.capitalize()}",
            f"Missing required parameter: '{parameter}', a data URI, base64 text or a URL.",
            parameter,
        )
    text = InputText(parameter, value)
    content = await tasks.read_upload(text, client.base_url)
    extension = next((e for magic, e in _EXTENSIONS.items() if content.startswith(magic)), None)
    if extension is None:
        raise text.refusal("Images are kept as PNG, JPEG or WEBP; send one of these")
    image_uuid = str(uuid.uuid4())
    name = f"{image_uuid}.{extension}"
    await tasks.keep_upload(image_uuid, name, content)
    return {
        "taskType": task["taskType"],
        **echo_uuid(task),
        f"{parameter}UUID": image_uuid,
        f"{parameter}URL": f"{client.base_url}/images/{name}",
    }
