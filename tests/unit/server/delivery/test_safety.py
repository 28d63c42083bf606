"""Detectors by setting: NudeNet, none, or one of the operator's own."""

import asyncio
from pathlib import Path

import pytest

from server.delivery.nudenet_detector import NudeNetDetector
from server.delivery.safety import SafetyChecker
from server.runware.errors import TaskError
from server.safety_settings import SafetySettings
from server.settings import SettingsError

NUDENET = """
class NudeDetector:
    def detect(self, encoded):
        name, score = encoded.decode().split()
        return [{"class": "FACE_FEMALE", "score": 0.99}, {"class": name, "score": float(score)}]
"""
OWN = """
class Red:
    def __init__(self, threshold): self.threshold = threshold
    def is_nsfw(self, encoded): return encoded.count(b"red") > self.threshold
def build(settings): return Red(settings.threshold)
def broken(settings): raise FileNotFoundError("weights.bin")
def wrong(settings): return 5
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of an operator, importable."""
    (tmp_path / "fake_nudenet.py").write_text(NUDENET)
    (tmp_path / "own_checker.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (b"BUTTOCKS_EXPOSED 0.5", True),
        (b"BUTTOCKS_EXPOSED 0.49", False),
        (b"FEET_EXPOSED 0.99", False),
    ],
)
def test_nudenet_decides_by_label_and_threshold(encoded: bytes, expected: bool) -> None:
    checker = SafetyChecker.from_settings(SafetySettings(), nudenet="fake_nudenet")
    checker.require()
    assert asyncio.run(checker.is_nsfw(encoded)) is expected


@pytest.mark.usefixtures("modules")
def test_a_detector_of_the_operators_own_gets_the_settings_and_decides() -> None:
    settings = SafetySettings(checker="own_checker:build", threshold=0.9)
    checker = SafetyChecker.from_settings(settings)
    checker.require()
    assert asyncio.run(checker.is_nsfw(b"red")) is True
    assert asyncio.run(checker.is_nsfw(b"blue")) is False


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize(
    ("checker", "reason"),
    [
        ("no_such_module:build", "ModuleNotFoundError"),
        ("own_checker:absent", "AttributeError"),
        ("own_checker:broken", r"FileNotFoundError: weights\.bin"),
        ("own_checker:wrong", r"returned int, which has no is_nsfw"),
    ],
)
def test_a_checker_that_cannot_be_used_stops_the_start_by_name(checker: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=f"safety.checker '{checker}'.*{reason}"):
        SafetyChecker.from_settings(SafetySettings(checker=checker))


@pytest.mark.parametrize(
    ("checker", "reason"), [("nudenet", "extra 'safety'"), ("none", "safety.checker is 'none'")]
)
def test_without_a_detector_a_check_is_refused_and_says_why(checker: str, reason: str) -> None:
    safety = SafetyChecker.from_settings(SafetySettings(checker=checker), nudenet="not_installed")
    with pytest.raises(TaskError, match=reason) as caught:
        safety.require()
    assert (caught.value.code, caught.value.parameter) == ("unsupportedSafetyCheck", "safety")
    with pytest.raises(TaskError, match=reason):  # a task from before a restart
        asyncio.run(safety.is_nsfw(b""))


def test_the_real_nudenet_takes_an_encoded_image() -> None:
    pytest.importorskip("nudenet", reason="the extra 'safety' is not installed")
    blank = (Path(__file__).parents[3] / "golden" / "e2e_auto.png").read_bytes()
    assert NudeNetDetector(SafetySettings()).is_nsfw(blank) is False
