"""What `hyimage bench quality` has measured, on disk: reference images and one line a cell.

A cell is one prompt with one setting. Its key is made from all that its figures depend on, so
a run goes on where an earlier one stopped, and nothing is taken for what it is not.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from model.loading.fingerprint import fingerprint
from pipeline.load import Pipeline
from pipeline.request import ImageRequest
from tools.bench.quality_settings import Setting
from tools.similarity import Pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One image of one setting, against the converged image and the uncached one of base steps."""

    key: str
    psnr: float
    ssim: float
    base_psnr: float
    base_ssim: float
    evaluations: int
    rows: int
    seconds: float


class Store:
    """A folder of references and cells."""

    def __init__(self, folder: Path, pipeline: Pipeline, checkpoint: Path) -> None:
        self._folder = folder
        self._pipeline = pipeline
        self._weights = [fingerprint(checkpoint), str(pipeline.transformer.dtype), pipeline.scheme]
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "cells.jsonl"
        self._cells = {cell.key: cell for cell in self._read()}

    def key(self, setting: Setting, request: ImageRequest, *others: object) -> str:
        """Return a name for what an image, and what it is compared with, depends on."""
        calibration = self._pipeline.calibration
        fitted = calibration.find_grid(setting.num_steps, request.guidance)
        parts = [
            *self._weights,
            setting.scheduler,
            setting.num_steps,
            asdict(setting.plan),
            [calibration.poly, calibration.tea_scale, calibration.fb_threshold]
            if setting.plan.is_on
            else None,
            fitted if setting.is_grid_fitted else None,
            [request.prompt, request.seeds, request.guidance, request.width_px, request.height_px],
            *others,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]

    def find(self, key: str) -> Cell | None:
        """Return a measured cell."""
        return self._cells.get(key)

    def add(self, cell: Cell) -> None:
        """Write a cell down, on the disk before this returns."""
        self._cells[cell.key] = cell
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(cell)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def image(self, key: str, generate: Callable[[], Pixels]) -> Pixels:
        """Return a kept image, or generate and keep it."""
        path = self._folder / f"{key}.npy"
        if not path.exists():
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                np.save(file, generate())
            partial.replace(path)
        pixels_yx3: Pixels = np.load(path)
        return pixels_yx3

    def _read(self) -> list[Cell]:
        """Return the cells of earlier runs; a line that a kill cut short is none."""
        if not self._path.exists():
            return []
        names = {field.name for field in fields(Cell)}
        cells = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                raw = json.loads(line)
            except ValueError:
                continue
            if set(raw) == names:
                cells.append(Cell(**raw))
        # So that the next line does not continue one that was cut short.
        self._path.write_text(
            "".join(json.dumps(asdict(cell)) + "\n" for cell in cells), encoding="utf-8"
        )
        return cells
