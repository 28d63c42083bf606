"""What tests share: the recorded checkpoint, a loaded model, a tiny random checkpoint."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, TypedDict

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import settings

from model.loading.options import LoadOptions
from pipeline.load import Pipeline, load_pipeline
from pipeline.request import ImageRequest
from pipeline.settings import PipelineSettings
from training.random_checkpoint import TINY_CONFIG, write_random_checkpoint

GOLDEN = Path(__file__).parent / "golden"
GOLDEN_CHECKPOINT = GOLDEN / "model"
FLOAT32 = LoadOptions(dtype=torch.float32)

# A busy machine must not fail a property for being slow; runaway tests are bounded by CI.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


class Tolerance(TypedDict):
    """How far apart numbers may be for `torch.testing.assert_close`."""

    atol: float
    rtol: float


# The only tolerances in the suite: a looser one carries a comment at its place.
TOLERANCE: dict[torch.dtype, Tolerance] = {
    torch.float32: {"atol": 1e-5, "rtol": 1e-5},
    torch.bfloat16: {"atol": 2e-2, "rtol": 2e-2},
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny tensors gain nothing from a second thread and lose much on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden_pipeline() -> Pipeline:
    """The checkpoint of the recordings, in float32, with its image-input pipeline."""
    return load_pipeline(PipelineSettings(checkpoint=str(GOLDEN_CHECKPOINT)), skip=())


@pytest.fixture(scope="session")
def edit_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of the recordings as an Instruct one: it takes input images."""
    folder = tmp_path_factory.mktemp("edit")
    shutil.copytree(GOLDEN_CHECKPOINT, folder, dirs_exist_ok=True)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sequence_template": "instruct"}))
    return folder


# The proportions of a model that `make serve` could load, at a sixteenth of the pixels.
SMALL_CONFIG: dict[str, Any] = {
    **TINY_CONFIG,
    "image_base_size": 256,
    "vae_downsample_factor": [16, 16],
    "vae": {
        **TINY_CONFIG["vae"],
        "block_out_channels": [8, 16, 32, 32, 32],
        "ffactor_spatial": 16,
    },
}


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_random_checkpoint(folder, SMALL_CONFIG)
    return folder


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_checkpoint: Path) -> Pipeline:
    return load_pipeline(PipelineSettings(checkpoint=str(tiny_checkpoint)))


@pytest.fixture
def image_request() -> ImageRequest:
    """A quick image; `dataclasses.replace` makes variants."""
    return ImageRequest(
        prompt="a red fox",
        width_px=256,
        height_px=256,
        num_steps=2,
        guidance=5.0,
        seeds=(7,),
    )
