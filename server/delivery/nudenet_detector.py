"""NudeNet as a detector (extra `safety`); its wheel holds the weights."""

import importlib
from functools import cached_property
from typing import Any

from server.safety_settings import SafetySettings

EXTRA, PACKAGE = "safety", "nudenet"


class NudeNetDetector:
    """Finds the labels that the settings name; loaded at the first check."""

    def __init__(self, settings: SafetySettings, package: str = PACKAGE) -> None:
        self._settings = settings
        self._package = package

    def is_nsfw(self, encoded: bytes) -> bool:
        """Return whether one of the labels is found with enough certainty."""
        found: list[dict[str, Any]] = self._detector.detect(encoded)
        return any(
            one["class"] in self._settings.labels and one["score"] >= self._settings.threshold
            for one in found
        )

    @cached_property
    def _detector(self) -> Any:
        return importlib.import_module(self._package).NudeDetector()
