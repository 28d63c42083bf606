"""Schemas of the task types that generate nothing, as the OpenAPI page shows them.

Names that are not listed are ignored: official clients send more with each of these.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

_OPEN = ConfigDict(extra="allow")
_UUID = Field(None, description="Repeated in the answer.")


class Authentication(BaseModel):
    """The API key; the first task, and instead of an `Authorization` header."""

    model_config = _OPEN
    taskType: Literal["authentication"]
    apiKey: str | None = Field(None, description="Any or none if the server has no keys.")
    connectionSessionUUID: str | None = Field(
        None, description="On a WebSocket: the session to go on with."
    )


class GetResponse(BaseModel):
    """Poll a task: one item for each image, all `processing` until the last is finished."""

    model_config = _OPEN
    taskType: Literal["getResponse"]
    taskUUID: str = Field(description="UUID of the task that is polled.")


class GetTaskDetails(BaseModel):
    """Return a task as it was sent, with its present response."""

    model_config = _OPEN
    taskType: Literal["getTaskDetails"]
    taskUUID: str = Field(description="UUID of the task.")


class CancelTask(BaseModel):
    """Stop a task after its present step. One that has ended stays as it is."""

    model_config = _OPEN
    taskType: Literal["cancelTask"]
    taskUUID: str = Field(description="UUID of the task that is wanted no more.")


class Ping(BaseModel):
    """Keep a WebSocket open; over HTTP a test of the connection."""

    model_config = _OPEN
    taskType: Literal["ping"]
    taskUUID: str | None = _UUID
    ping: bool | None = None


class ImageUpload(BaseModel):
    """Keep an image; PNG, JPEG or WEBP."""

    model_config = _OPEN
    taskType: Literal["imageUpload"]
    taskUUID: str | None = _UUID
    image: str = Field(description="A data URI, base64 text, or an http or https URL.")


class MediaStorage(BaseModel):
    """Keep an image; the same under another name."""

    model_config = _OPEN
    taskType: Literal["mediaStorage"]
    taskUUID: str | None = _UUID
    operation: str | None = Field(None, description="`upload`; nothing else is done.")
    media: str = Field(description="A data URI, base64 text, or an http or https URL.")


class ModelSearch(BaseModel):
    """Return the served model if all words are found in its names."""

    model_config = _OPEN
    taskType: Literal["modelSearch"]
    taskUUID: str | None = _UUID
    search: str | None = None
    limit: int | None = None
    offset: int | None = Field(None, description="Models to skip.")


class AccountManagement(BaseModel):
    """Return what is known of the key's account."""

    model_config = _OPEN
    taskType: Literal["accountManagement"]
    taskUUID: str | None = _UUID
    operation: Literal["getDetails"] = "getDetails"


OTHER_TASKS: tuple[type[BaseModel], ...] = (
    Authentication, GetResponse, GetTaskDetails, Ping, ImageUpload, MediaStorage, ModelSearch,
    AccountManagement, CancelTask,
)  # fmt: skip
