"""What clients get to see of a task: result items, items in the making, error objects."""

import base64
from typing import Any

from server.delivery.images import ImageStore, media_type
from server.runware.errors import TaskError
from server.runware.pricing import image_cost
from server.settings import Settings
from server.tasks.tables import ImageRow, TaskRow


async def result_item(
    row: TaskRow, image: ImageRow, images: ImageStore, settings: Settings
) -> dict[str, Any]:
    """Return the item of a finished image, with exactly the forms that were asked for.

    Raises:
        TaskError: the image's bytes are asked for and have expired.
    """
    request = row.request
    item: dict[str, Any] = {
        "taskType": "imageInference",
        "taskUUID": row.task_uuid,
        "imageUUID": image.image_uuid,
        "seed": int(row.seeds[image.position]),
    }
    forms = request.get("outputType", ["URL"])
    if "URL" in forms:
        item["imageURL"] = f"{row.base_url}/images/{image.name}"
    if "base64Data" in forms or "dataURI" in forms:
        content = await images.load(image.name)
        if content is None:
            raise TaskError("taskExpired", "The images of this task have expired.", "taskUUID")
        encoded = base64.b64encode(content).decode("ascii")
        if "base64Data" in forms:
            item["imageBase64Data"] = encoded
        if "dataURI" in forms:
            item["imageDataURI"] = f"data:{media_type(image.name)};base64,{encoded}"
    if request.get("includeCost"):
        item["cost"] = image_cost(
            settings.price,
            image.width or request["width"],
            image.height or request["height"],
            request.get("steps", 20),
        )
    if image.is_nsfw is not None:
        item["NSFWContent"] = image.is_nsfw
    return item


def processing_items(row: TaskRow, progress: int, texts: dict[int, str]) -> list[dict[str, Any]]:
    """Return one item per image, for a task of which some image is not finished.

    `texts` holds what the model has written so far, by position, for clients that ask for it.

    All or nothing: some clients add up finished images over polls and return one twice.
    Source: wire specification 4.3.
    """
    return [
        {
            "taskType": "imageInference",
            "taskUUID": row.task_uuid,
            "imageUUID": image_uuid,
            "status": "processing",
            "progress": progress,
            **({"diagnostics": {"text": texts[position]}} if position in texts else {}),
        }
        for position, image_uuid in enumerate(row.image_uuids)
    ]


def to_error_object(error: TaskError, task: object = None) -> dict[str, Any]:
    """Return the API's error object; the task's own UUID and type let clients route it."""
    fields: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.parameter is not None:
        fields["parameter"] = error.parameter
    fields |= error.details
    if isinstance(task, dict):
        for name in ("taskUUID", "taskType"):
            if isinstance(task.get(name), str):
                fields.setdefault(name, task[name])
    return fields
