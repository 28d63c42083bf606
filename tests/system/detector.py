"""A detector as an operator may plug one in: every image is harmless if it can be decoded."""

import io

from PIL import Image

from server.safety_settings import SafetySettings


class Decoder:
    """Decodes an image, and finds nothing in it."""

    def is_nsfw(self, encoded: bytes) -> bool:
        Image.open(io.BytesIO(encoded)).load()
        return False


def build(settings: SafetySettings) -> Decoder:
    """Return the detector that `safety.checker` names in tests of whole servers."""
    assert 0 <= settings.threshold <= 1
    return Decoder()
