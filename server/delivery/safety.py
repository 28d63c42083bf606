"""Content checking: the interface of a detector, and the choice of one by `safety.checker`."""

import asyncio
import importlib
import importlib.util
from typing import Protocol

from server.delivery.nudenet_detector import EXTRA, PACKAGE, NudeNetDetector
from server.runware.errors import TaskError
from server.safety_settings import SafetySettings
from server.settings import SettingsError


class Detector(Protocol):
    """What decides whether an image is NSFW; `safety.checker` names a function that returns one."""

    def is_nsfw(self, encoded: bytes) -> bool:
        """Return whether an encoded image (JPG, PNG or WEBP) is NSFW.

        Called in a thread, for one image at a time. An exception fails the image's task: an image
        that could not be checked is not delivered.
        """


class SafetyChecker:
    """Runs a detector beside the event loop; without one, tasks that want a check are refused."""

    def __init__(self, detector: Detector | None, missing: str = "No checker was given.") -> None:
        """Hold a detector; without one, `missing` says why there is none."""
        self._detector = detector
        self._missing = missing
        self._turn = asyncio.Lock()

    @classmethod
    def from_settings(cls, settings: SafetySettings, nudenet: str = PACKAGE) -> "SafetyChecker":
        """Return the checker that `safety.checker` names; `nudenet` is the package of NudeNet.

        Raises:
            SettingsError: a function of the operator's own cannot be imported, or fails.
        """
        if settings.checker == "none":
            return cls(None, "Its safety.checker is 'none'.")
        if settings.checker != "nudenet":
            return cls(_build_detector(settings))
        if importlib.util.find_spec(nudenet) is None:
            return cls(None, f"Its extra '{EXTRA}' (NudeNet) is not installed.")
        return cls(NudeNetDetector(settings, nudenet))

    def require(self) -> None:
        """Check that a check can be made.

        Raises:
            TaskError: there is no detector.
        """
        if self._detector is None:
            raise TaskError(
                "unsupportedSafetyCheck",
                f"This server has no content checker. {self._missing} Send the task without a "
                "check, or ask the operator to install one.",
                "safety",
            )

    async def is_nsfw(self, encoded: bytes) -> bool:
        """Return what the detector says of an image.

        Raises:
            TaskError: there is no detector, as after a restart without one.
        """
        self.require()
        assert self._detector is not None
        async with self._turn:
            return await asyncio.to_thread(self._detector.is_nsfw, encoded)


def _build_detector(settings: SafetySettings) -> Detector:
    module, _, function = settings.checker.partition(":")
    try:
        detector: Detector = getattr(importlib.import_module(module), function)(settings)
    except Exception as e:
        raise SettingsError(
            f"safety.checker {settings.checker!r} cannot be used ({type(e).__name__}: {e}): name a "
            "function as package.module:function that takes the safety settings and returns a "
            "detector, or write 'nudenet' or 'none'"
        ) from e
    if not callable(getattr(detector, "is_nsfw", None)):
        raise SettingsError(
            f"safety.checker {settings.checker!r} returned {type(detector).__name__}, which has no "
            "is_nsfw(encoded); see docs/operating.md"
        )
    return detector
