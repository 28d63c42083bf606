"""A folder of recorded tensors: manifest.json, safetensors files, JSON lists and images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.config_file import read_json
from model.errors import ModelError
from model.loading.safetensors_file import SafetensorsFile


class RecordingError(ModelError):
    """A recording folder is incomplete or unreadable."""

    code = "invalidRecording"


class Recording:
    """A recording on disk: its cases, tensors with tolerances, and images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_json(folder / "manifest.json", RecordingError)
        for field in ("cases", "tensors"):
            if not isinstance(self.manifest.get(field), dict):
                raise RecordingError(f"{folder / 'manifest.json'} has no {field}")

    @property
    def cases(self) -> dict[str, dict[str, Any]]:
        """The image cases' inputs by name."""
        cases: dict[str, dict[str, Any]] = self.manifest["cases"]
        return cases

    def has(self, file_name: str) -> bool:
        return (self.folder / file_name).is_file()

    def inner(self) -> list["Recording"]:
        """Return the recordings in folders of this one, each of which is a group of it."""
        paths = sorted(self.folder.glob("*/manifest.json"))
        return [Recording(path.parent) for path in paths]

    def tolerances(self, file_name: str) -> dict[str, Any]:
        """Return tensor name -> tolerance for every tensor the manifest promises in a file."""
        tensors: dict[str, dict[str, Any]] = self.manifest["tensors"]
        prefix = f"{file_name}:"
        return {
            key.removeprefix(prefix): entry.get("tolerance")
            for key, entry in tensors.items()
            if key.startswith(prefix)
        }

    def read_tensors(self, file_name: str) -> dict[str, Tensor]:
        """Read every tensor of a file; all that the manifest promises must be there."""
        with SafetensorsFile(self.folder / file_name) as file:
            tensors = {stored.name: file.read(stored) for stored in file.tensors}
        if missing := self.tolerances(file_name).keys() - tensors.keys():
            raise RecordingError(f"{file_name} lacks {sorted(missing)}, which the manifest lists")
        return tensors

    def read_json(self, file_name: str) -> Any:
        """Read a JSON file of any shape."""
        return json.loads((self.folder / file_name).read_text(encoding="utf-8"))

    def read_image(self, file_name: str) -> Tensor:
        """Read a recorded image. Shapes: -> rgb_yx3 uint8."""
        with Image.open(self.folder / file_name) as image:
            return torch.from_numpy(np.array(image.convert("RGB")))
