"""Cost of an image, for `includeCost`."""

from server.settings import PriceSettings


def image_cost(settings: PriceSettings, width_px: int, height_px: int, steps: int) -> float:
    """Return USD for one image."""
    megapixel_steps = width_px * height_px / 1e6 * steps
    return round(settings.per_image + settings.per_megapixel_step * megapixel_steps, 4)
