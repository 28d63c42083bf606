"""What this server has: the items of modelSearch and accountManagement."""

from typing import Any

from pipeline.checkpoint_info import CheckpointInfo
from server.runware.envelope import echo_uuid
from server.runware.errors import TaskError
from server.settings import ApiSettings


def search_models(
    checkpoint: CheckpointInfo, api: ApiSettings, task: dict[str, Any]
) -> dict[str, Any]:
    """Return the item of a modelSearch: the served model, if all words are found in it."""
    sizes = checkpoint.sizes
    square = next(size for size in sizes if size.width_px == size.height_px)
    default = next((s for s in sizes if str(s) == api.default_size), square)
    model = {
        "air": api.model,
        "name": "HunyuanImage-3.0",
        "version": "3.0",
        "category": "checkpoint",
        "architecture": "hunyuan_image_3",
        "tags": ["text-to-image"],
        "heroImage": "",
        "private": False,
        "comment": "",
        "type": "base",
        "defaultWidth": default.width_px,
        "defaultHeight": default.height_px,
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


def account_details(task: dict[str, Any]) -> dict[str, Any]:
    """Return the item of an accountManagement: an account without credit or usage.

    Raises:
        TaskError: another operation than getDetails.
    """
    if task.get("operation", "getDetails") != "getDetails":
        raise TaskError(
            "unsupportedOperation",
            "This server keeps no usage statistics per account; operation must be 'getDetails'.",
            "operation",
            {"allowedValues": ["getDetails"]},
        )
    nothing = {"credits": 0, "requests": 0}
    return {
        "taskType": "accountManagement",
        **echo_uuid(task),
        "operation": "getDetails",
        "organizationUUID": "00000000-0000-4000-8000-000000000000",
        "organizationName": "self-hosted",
        "balance": 0,
        "team": [],
        "apiKeys": [],
        "usage": {"total": nothing, "today": nothing, "last7Days": nothing, "last30Days": nothing},
    }
