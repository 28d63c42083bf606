"""Content checking with NudeNet, whose detector is part of its wheel (extra `safety`).

The detector is loaded once, at its first use, and runs in a thread: onnxruntime does not hold the
interpreter, so the event loop goes on.
"""

import asyncio
import importlib.util
from functools import cached_property
from typing import Any

from server.runware.errors import TaskError
from server.settings import SafetySettings

DETECTOR = "nudenet"


class SafetyChecker:
    """Detects in images the labels that the settings name."""

    def __init__(self, settings: SafetySettings, package: str = DETECTOR) -> None:
        self._settings = settings
        self._package = package
        self._turn = asyncio.Lock()

    def require(self) -> None:
        """Check that a check can be made.

        Raises:
            TaskError: the detector is not installed.
        """
        if importlib.util.find_spec(self._package) is None:
            raise TaskError(
                "unsupportedSafetyCheck",
                "This server has no content checker: its extra 'safety' is not installed. "
                "Send the task without a check, or ask the operator to install it.",
                "safety",
            )

    async def is_nsfw(self, encoded: bytes) -> bool:
        """Return whether the detector finds one of the labels with enough certainty."""
        async with self._turn:
            found = await asyncio.to_thread(self._detect, encoded)
        return any(
            one["class"] in self._settings.labels and one["score"] >= self._settings.threshold
            for one in found
        )

    def _detect(self, encoded: bytes) -> list[dict[str, Any]]:
        detections: list[dict[str, Any]] = self._detector.detect(encoded)
        return detections

    @cached_property
    def _detector(self) -> Any:
        return importlib.import_module(self._package).NudeDetector()
