"""Settings of the check of finished images' content."""

from pydantic import BaseModel, ConfigDict, Field


class SafetySettings(BaseModel):
    """What content checking reports as NSFWContent."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    checker: str = Field(
        "nudenet",
        pattern=r"^(none|nudenet|[\w.]+:\w+)$",
        description="nudenet (extra safety), none, or your own as package.module:function",
    )
    threshold: float = Field(0.5, ge=0, le=1, description="Least certainty of the detector")
    labels: tuple[str, ...] = Field(
        (
            "FEMALE_BREAST_EXPOSED",
            "FEMALE_GENITALIA_EXPOSED",
            "MALE_GENITALIA_EXPOSED",
            "BUTTOCKS_EXPOSED",
            "ANUS_EXPOSED",
        ),
        description="Labels of NudeNet",
    )
