"""Settings of prices: the section `[price]`."""

from pydantic import BaseModel, ConfigDict, Field


class PriceSettings(BaseModel):
    """What `includeCost` reports, in USD per image.

    per_image + steps * per_megapixel_step * (MP + growth * MP^2) for MP megapixels: attention
    grows with the square. The defaults give the four prices of the parameter page within 0.6 %.
    Each input image adds input_share * per_megapixel_step * (MP + growth * MP^2), for as many MP as
    its tokens stand for: it is prefilled once, one row of a step that has two.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    per_megapixel_step: float = Field(0.00538, ge=0, description="USD a step of one megapixel")
    growth: float = Field(0.1, ge=0, description="Share by which a megapixel raises the price")
    per_image: float = Field(0.0, ge=0, description="USD an image, whatever its size and steps")
    input_share: float = Field(0.5, ge=0, description="Share of a step's price for an input image")
    always_included: bool = Field(False, description="Return cost also without includeCost")
