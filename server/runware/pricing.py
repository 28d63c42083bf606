"""Cost of an image, for `includeCost`."""

from collections.abc import Sequence

from server.price_settings import PriceSettings


def image_cost(
    settings: PriceSettings,
    width_px: int,
    height_px: int,
    steps: int,
    input_pixels: Sequence[int] = (),
) -> float:
    """Return USD for one image; `input_pixels` are what the tokens of input images stand for."""

    def per_step(pixels: int) -> float:
        megapixels = pixels / 1e6
        return settings.per_megapixel_step * (megapixels + settings.growth * megapixels**2)

    inputs = settings.input_share * sum(map(per_step, input_pixels))
    return round(settings.per_image + per_step(width_px * height_px) * steps + inputs, 4)
