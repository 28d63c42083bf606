"""Cost of an image, for `includeCost`."""

from server.price_settings import PriceSettings


def image_cost(settings: PriceSettings, width_px: int, height_px: int, steps: int) -> float:
    """Return USD for one image."""
    megapixels = width_px * height_px / 1e6
    per_step = settings.per_megapixel_step * (megapixels + settings.growth * megapixels**2)
    return round(settings.per_image + per_step * steps, 4)
