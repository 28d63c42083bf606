"""Settings of finished images: the section `[images]`."""

from pydantic import BaseModel, ConfigDict, Field


class ImageSettings(BaseModel):
    """Where finished images are kept for URL delivery, and what their files say of themselves."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    store: str = Field("data/images", description="A folder, or a URL that fsspec understands")
    ttl_s: int = Field(86400, ge=60, description="How long a URL works if its task has no ttl")
    redirect: bool = Field(False, description="Redirect image requests to the store, URLs signed")
    embed_parameters: bool = Field(
        False, description="Write prompt, parameters and seed into each file, for whoever gets it"
    )
    mark_generated: bool = Field(
        False, description="Write IPTC's mark of generated media, trainedAlgorithmicMedia"
    )
