"""Result items of a task: finished images, images in the making, stored failures."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from model.resolution import Size
from server.delivery.images import ImageStore, media_type
from server.price_settings import PriceSettings
from server.runware.envelope import EstimateItem, Item, ProcessingItem, ResultItem, as_task_error
from server.runware.errors import TaskError
from server.runware.pricing import image_cost
from server.runware.schemas import ImageInference
from server.tasks.accepted import AcceptedTask
from server.tasks.tables import ImageRow, TaskRow


@dataclass(frozen=True, slots=True)
class Poll:
    """What has become of a task: items of its images, and the failure that ended it.

    The items carry the UUID as the poller wrote it, by which he finds them.
    """

    items: list[Item]
    failure: TaskError | None = None


def result_item(
    task: AcceptedTask, image: ImageRow, encoded: bytes | None, price: PriceSettings
) -> ResultItem:
    """Return the item of a finished image, with exactly the forms that its task requested.

    `encoded` may be None if no form holds the bytes.
    """
    parameters = task.parameters
    item: ResultItem = {
        "taskType": "imageInference",
        "taskUUID": parameters.taskUUID,
        "imageUUID": image.image_uuid,
        "seed": task.seeds[image.position],
    }
    if "URL" in parameters.outputType:
        item["imageURL"] = f"{task.base_url}/images/{image.name}"
    if needs_bytes(task):
        assert encoded is not None
        text = base64.b64encode(encoded).decode("ascii")
        if "base64Data" in parameters.outputType:
            item["imageBase64Data"] = text
        if "dataURI" in parameters.outputType:
            item["imageDataURI"] = f"data:{media_type(image.name)};base64,{text}"
    if parameters.includeCost or price.always_included:
        width_px, height_px = image.width or task.width_px, image.height or task.height_px
        assert width_px is not None
        assert height_px is not None
        item["cost"] = image_cost(price, width_px, height_px, parameters.steps, task.input_pixels)
    if image.is_nsfw is not None:
        item["NSFWContent"] = image.is_nsfw
    return item


def estimate_item(
    parameters: ImageInference,
    size: Size | None,
    offered: Sequence[Size],
    price: PriceSettings,
    input_pixels: Sequence[int] = (),
) -> EstimateItem:
    """Return the item of a dry run: one for all images, priced together.

    A size that the model is to choose is priced as the square one; all have about one area.
    """
    square = min(offered, key=lambda s: abs(s.width_px - s.height_px))
    width_px, height_px = (size or square).width_px, (size or square).height_px
    each = image_cost(price, width_px, height_px, parameters.steps, input_pixels)
    return {
        "taskType": "imageInference",
        "taskUUID": parameters.taskUUID,
        "cost": round(each * parameters.numberResults, 4),
    }


async def load_result_item(
    task: AcceptedTask, image: ImageRow, images: ImageStore, price: PriceSettings
) -> ResultItem:
    """Return the item of an image that was finished some time ago.

    Raises:
        TaskError: the item holds the image's bytes, and they have expired.
    """
    encoded = await images.load(image.name) if needs_bytes(task) else None
    if encoded is None and needs_bytes(task):
        raise TaskError("taskExpired", "The images of this task have expired.", "taskUUID")
    return result_item(task, image, encoded, price)


def with_diagnostics(item: ResultItem, image: ImageRow, is_wanted: bool) -> ResultItem:
    """Add how the image was generated, for clients that request it."""
    if is_wanted and image.diagnostics:
        item["diagnostics"] = image.diagnostics
    return item


def needs_bytes(task: AcceptedTask) -> bool:
    """Return whether a form of the results holds the image itself."""
    return bool({"base64Data", "dataURI"} & set(task.parameters.outputType))


def processing_items(row: TaskRow, progress: int, texts: dict[int, str]) -> list[ProcessingItem]:
    """Return one item per image, for a task of which some image is not finished.

    `texts` holds what the model has written so far, by position, for clients that request it.

    All or nothing: some clients add up finished images over polls and return one twice.
    Source: wire specification 4.3.
    """
    items: list[ProcessingItem] = []
    for position, image_uuid in enumerate(row.image_uuids):
        item: ProcessingItem = {
            "taskType": "imageInference",
            "taskUUID": row.request["taskUUID"],
            "imageUUID": image_uuid,
            "status": "processing",
            "progress": progress,
        }
        if position in texts:
            item["diagnostics"] = {"text": texts[position]}
        items.append(item)
    return items


def stored_failure(row: TaskRow) -> TaskError:
    """Return the error that ended a task, as its polls report it."""
    failure = as_task_error(row.error or {})  # without the UUID: in the spelling of the poll
    failure.details |= {"status": "error", "taskType": "imageInference"}
    return failure


def upload_failure(images: Sequence[ImageRow]) -> TaskError | None:
    """Return the error for the images that could not be uploaded, or None if there is none."""
    failed = [image for image in images if image.upload_fault is not None]
    if not failed:
        return None
    return TaskError(
        "uploadFailed",
        failed[0].upload_fault or "",
        "uploadEndpoint",
        {"imageUUIDs": [image.image_uuid for image in failed]},
    )
