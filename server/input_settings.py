"""Settings of input images: the section `[inputs]`."""

from pydantic import BaseModel, ConfigDict, Field


class InputSettings(BaseModel):
    """Limits of the images that tasks bring. Pixels, ratio and frames have limits of their own."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    max_bytes: int = Field(20 * 2**20, ge=1024, description="Of the file of one input image")
    fetch_timeout_s: float = Field(
        10.0, gt=0, description="How long the host of an image's URL has to send it"
    )
    max_queued_bytes: int = Field(
        2**30, ge=1024, description="Of all unfinished tasks' files; beyond this a task gets 429"
    )
