"""What this server has: the items of modelSearch and accountManagement."""

from typing import Any

from pipeline.checkpoint_info import CheckpointInfo
from server.runware.envelope import echo_uuid
from server.runware.errors import TaskError
from server.settings import ApiSettings
from server.tasks.key_file import KeyRecord
from server.tasks.usage import DailyUsage, sum_usage


def search_models(
    checkpoint: CheckpointInfo, max_input_images: int, api: ApiSettings, task: dict[str, Any]
) -> dict[str, Any]:
    """Return the item of a modelSearch: the served model, if all words are found in it."""
    sizes = checkpoint.sizes
    square = next(size for size in sizes if size.width_px == size.height_px)
    default = next((s for s in sizes if str(s) == api.default_size), square)
    vocabulary = checkpoint.vocabulary
    model = {
        "air": api.model,
        "name": "HunyuanImage-3.0",
        "version": "3.0",
        "category": "checkpoint",
        "architecture": "hunyuan_image_3",
        "tags": ["text-to-image", *(["image-to-image"] if max_input_images else [])],
        "heroImage": "",
        "private": False,
        "comment": "" if vocabulary is None else vocabulary.about,
        "type": "base",
        "defaultWidth": default.width_px,
        "defaultHeight": default.height_px,
        "maxInputImages": max_input_images,
        **({} if vocabulary is None else {"vocabulary": vocabulary.words()}),
    }
    words = str(task.get("search") or "").lower().split()
    text = f"{model['air']} {model['name']} {model['architecture']}".lower()
    found = [model] if all(word in text for word in words) else []
    offset = task.get("offset")
    shown = found[offset:] if isinstance(offset, int) and offset > 0 else found
    return {
        "taskType": "modelSearch",
        **echo_uuid(task),
        "results": shown,
        "totalResults": len(found),
    }


def account_details(task: dict[str, Any], key: KeyRecord, daily: DailyUsage) -> dict[str, Any]:
    """Return the item of an accountManagement: what the caller's own key used, in USD and tasks.

    There is no credit, so the balance is 0; a key's quota stands beside its name.

    Raises:
        TaskError: another operation than getDetails.
    """
    if task.get("operation", "getDetails") != "getDetails":
        raise TaskError(
            "unsupportedOperation",
            "This server has the usage of the key alone; operation must be 'getDetails'.",
            "operation",
            {"allowedValues": ["getDetails"]},
        )
    periods = {"total": None, "today": 1, "last7Days": 7, "last30Days": 30}
    used = {name: sum_usage(daily, last_days) for name, last_days in periods.items()}
    expires = None if key.expires is None else key.expires.isoformat()
    own = {"name": key.name, "expires": expires, "imagesPerDay": key.images_per_day}
    return {
        "taskType": "accountManagement",
        **echo_uuid(task),
        "operation": "getDetails",
        "organizationUUID": "00000000-0000-4000-8000-000000000000",
        "organizationName": "self-hosted",
        "balance": 0,
        "team": [],
        "apiKeys": [own],
        "usage": {
            name: {"credits": u.cost, "requests": u.num_tasks, "images": u.num_images}
            for name, u in used.items()
        },
    }
