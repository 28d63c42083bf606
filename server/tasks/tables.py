"""Tables of the task store, and their rows as dataclasses.

A change to a table needs a migration; CONTRIBUTING.md says how to add one.
"""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from server.runware.envelope import ErrorObject

RUNNING, SUCCESS, FAILED = "running", "success", "error"
UPLOAD = "upload"  # the task_uuid of images that clients uploaded
FOREVER = 1e18

METADATA = sa.MetaData()

TASKS = sa.Table(
    "tasks",
    METADATA,
    sa.Column("task_uuid", sa.String(36), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("request", sa.JSON, nullable=False),
    sa.Column("base_url", sa.Text, nullable=False),
    sa.Column("seeds", sa.JSON, nullable=False),
    sa.Column("image_uuids", sa.JSON, nullable=False),
    sa.Column("status", sa.String(8), nullable=False, index=True),
    sa.Column("error", sa.JSON),
    sa.Column("created_at", sa.Float, nullable=False, index=True),
    sa.Column("holder", sa.String(36)),
    sa.Column("held_until", sa.Float),
    sa.Column("progress", sa.Integer),
    sa.Column("width", sa.Integer),
    sa.Column("height", sa.Integer),
    sa.Column("request_id", sa.Text),
    sa.Column("is_cancelled", sa.Boolean),
    sa.Column("inputs", sa.JSON),
)
IMAGES = sa.Table(
    "images",
    METADATA,
    sa.Column("image_uuid", sa.String(36), primary_key=True),
    sa.Column("task_uuid", sa.String(36), nullable=False, index=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("is_nsfw", sa.Boolean),
    sa.Column("expires_at", sa.Float, nullable=False, index=True),
    sa.Column("diagnostics", sa.JSON),
    sa.Column("width", sa.Integer),
    sa.Column("height", sa.Integer),
    sa.Column("upload_fault", sa.Text),
)
WEBHOOKS = sa.Table(
    "webhooks",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("task_uuid", sa.String(36), nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("num_tries", sa.Integer, nullable=False),
    sa.Column("next_try_at", sa.Float, nullable=False, index=True),
)
INPUTS = sa.Table(
    "inputs",
    METADATA,
    sa.Column("name", sa.String(80), primary_key=True),  # in the image store
    sa.Column("sha256", sa.String(64), index=True),  # null until the bytes are whole, and after
    sa.Column("expires_at", sa.Float, nullable=False, index=True),
)
USAGE = sa.Table(
    "usage",
    METADATA,
    sa.Column("owner", sa.String(64), primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True),  # ISO date in UTC
    sa.Column("num_tasks", sa.Integer, nullable=False),
    sa.Column("num_images", sa.Integer, nullable=False),
    sa.Column("cost", sa.Float, nullable=False),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredInput:
    """An input image of a task, in the image store under `name`.

    `parameter` brought it; `pixels` are as many as its tokens stand for.
    """

    parameter: str
    name: str
    size_bytes: int
    pixels: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRow:
    """A row of `tasks`: one accepted task."""

    task_uuid: str
    owner: str
    request: dict[str, Any]
    base_url: str
    seeds: list[str]
    image_uuids: list[str]
    status: str
    error: ErrorObject | None
    created_at: float
    holder: str | None = None  # the server that generates it, where several share a store
    held_until: float | None = None
    progress: int | None = None  # percent, as of the last renewal of the lease
    width: int | None = None  # of a task whose size admission chose
    height: int | None = None
    request_id: str | None = None  # of the request that brought it, for the log
    is_cancelled: bool | None = None  # wanted no more; whoever generates it ends it
    inputs: list[dict[str, Any]] | None = None  # the fields of its input images, in their order

    @property
    def stored_inputs(self) -> tuple[StoredInput, ...]:
        return tuple(StoredInput(**fields) for fields in self.inputs or ())


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRow:
    """A row of `images`: one finished image, in the image store under `name`."""

    image_uuid: str
    task_uuid: str
    position: int
    name: str
    is_nsfw: bool | None
    expires_at: float
    diagnostics: dict[str, Any] | None = None
    width: int | None = None
    height: int | None = None
    upload_fault: str | None = None  # why the task's endpoint did not get it


@dataclass(frozen=True, kw_only=True, slots=True)
class Webhook:
    """A webhook call to be made."""

    task_uuid: str
    position: int
    url: str
    body: dict[str, Any]
    num_tries: int
    next_try_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class DueWebhook(Webhook):
    """A row of `webhooks`: a call that is stored."""

    id: int


@dataclass(frozen=True, slots=True)
class StoredTask:
    """A task with its finished images in order."""

    row: TaskRow
    images: tuple[ImageRow, ...]
