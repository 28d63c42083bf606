"""Mistakes that are easily made with input images: each makes a check of the recording fail.

A mistaken case differs from the right one in a single step; no layer runs.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from model.image_input import EmbeddedImage
from model.sequence import ImageSequence
from model.vision import build_vision_tower, cut_patches
from pipeline.image_inputs import InputImages, PreparedImage, load_input_images
from pipeline.input_image import read_input_image
from pipeline.load import Pipeline
from tests.conftest import GOLDEN
from tools.verify.checks import compare_tensors
from tools.verify.edit_case import EditCase
from tools.verify.recording import Recording

RECORDING = Recording(GOLDEN / "edit")
FILE = "edit_one.safetensors"
# What needs no layer.
WATCHED = (
    "vae_input_u8_0", "vit_pixel_values_0", "vae_mean_0", "cond_latents_0", "vit_out_0",
    "cond_vae_tokens_0", "vit_tokens_0", "cond_timestep_token", "rope_pos", "attn_mask_rowsum",
    "attn_mask_colsum", "cond_vit_image_mask",
)  # fmt: skip


class MeanForSample(EditCase):
    @cached_property
    def _noises(self) -> list[Tensor]:
        return [torch.zeros_like(noise) for noise in super()._noises]


class StretchedForCut(EditCase):
    @cached_property
    def _inputs(self) -> InputImages:
        file = RECORDING.folder / self._case["images"][0]["file"]
        return load_input_images(self._pipeline, [file.read_bytes()], is_stretched=True)


class CutImageForTheTower(EditCase):
    @cached_property
    def _inputs(self) -> InputImages:
        return self._with_patches(lambda image: torch.tensor(image.rgb_yx3))

    def _with_patches(self, pixels_of: Callable[[PreparedImage], Tensor]) -> InputImages:
        config = self._pipeline.transformer.config
        file = RECORDING.folder / self._case["images"][0]["file"]
        inputs = load_input_images(self._pipeline, [file.read_bytes()], is_stretched=False)
        (image,) = inputs.prepared
        grid = (image.grid.patches_down, image.grid.patches_across)
        patches_SZ = cut_patches(pixels_of(image), grid, config.patch_size, config.max_patches)
        return replace(inputs, prepared=(replace(image, patches_SZ=patches_SZ),))


class PillowsBilinear(CutImageForTheTower):
    @cached_property
    def _inputs(self) -> InputImages:
        def resized(image: PreparedImage) -> Tensor:
            file = RECORDING.folder / self._case["images"][0]["file"]
            side, grid = self._pipeline.transformer.config.patch_size, image.grid
            wanted = (grid.patches_across * side, grid.patches_down * side)
            upright = read_input_image(file.read_bytes())
            return torch.tensor(np.asarray(upright.resize(wanted, Image.Resampling.BILINEAR)))

        return self._with_patches(resized)


class TimestepOfTheDrawing(EditCase):
    @cached_property
    def _images(self) -> Sequence[EmbeddedImage]:
        (image,), transformer = super()._images, self._pipeline.transformer
        time_1 = torch.full((1,), 1000.0)
        latent_1CYX = self._recorded["cond_latents_0"].unsqueeze(0)
        with torch.inference_mode():
            embedded = transformer.patch_embed(latent_1CYX, transformer.time_embed(time_1))
            token_1D = transformer.timestep_emb(time_1)
        return [replace(image, latent_1SD=embedded, timestep_1D=token_1D)]


class PaddingZeroed(EditCase):
    @cached_property
    def _inputs(self) -> InputImages:
        inputs = super()._inputs
        (encoded,), grid = inputs.encoded, inputs.grids[0]
        vision_1SD = encoded.vision_1SD.clone()
        vision_1SD[:, grid.patches_down * grid.patches_across :] = 0
        return replace(inputs, encoded=(replace(encoded, vision_1SD=vision_1SD),))


class CausalImages(EditCase):
    @cached_property
    def _rows(self) -> list[ImageSequence]:
        return [replace(row, blocks=()) for row in super()._rows]


class GridOfThePadding(EditCase):
    @cached_property
    def _rows(self) -> list[ImageSequence]:
        def padded(row: ImageSequence) -> ImageSequence:
            (block,) = row.blocks
            grid = replace(block.grid, patches_down=8, patches_across=8)
            return replace(row, blocks=(replace(block, grid=grid),))

        return [padded(row) for row in super()._rows]


class ExactGelu(EditCase):
    def __init__(self, pipeline: Pipeline, recording: Recording, name: str) -> None:
        tower = build_vision_tower({**pipeline.transformer.config.vision, "hidden_act": "gelu"})
        assert tower is not None
        assert pipeline.transformer.vision_model is not None
        tower.load_state_dict(pipeline.transformer.vision_model.state_dict())
        transformer = copy.copy(pipeline.transformer)
        transformer._modules = {**pipeline.transformer._modules, "vision_model": tower.eval()}
        super().__init__(replace(pipeline, transformer=transformer), recording, name)


def failing(case: EditCase) -> set[str]:
    """Return the watched tensors that differ from the recorded ones."""
    recorded, tolerances = RECORDING.read_tensors(FILE), RECORDING.tolerances(FILE)
    failed = set()
    for name in WATCHED:
        ours = case._ours(name, recorded[name])
        assert ours is not None
        if not compare_tensors("edit_one", name, ours, recorded[name], tolerances[name]).is_ok:
            failed.add(name)
    return failed


@pytest.mark.parametrize(
    ("mistaken", "caught_by"),
    [
        (EditCase, set()),
        (MeanForSample, {"cond_latents_0", "cond_vae_tokens_0"}),
        (StretchedForCut, {"vae_input_u8_0", "vae_mean_0", "cond_latents_0"}),
        (CutImageForTheTower, {"vit_pixel_values_0", "vit_out_0"}),
        (PillowsBilinear, {"vit_pixel_values_0"}),
        (TimestepOfTheDrawing, {"cond_vae_tokens_0", "cond_timestep_token"}),
        (PaddingZeroed, {"vit_tokens_0"}),
        (CausalImages, {"rope_pos", "attn_mask_rowsum", "attn_mask_colsum"}),
        (GridOfThePadding, {"rope_pos"}),
        (ExactGelu, {"vit_out_0"}),
    ],
)
def test_a_mistake_is_caught(
    golden_pipeline: Pipeline, mistaken: type[EditCase], caught_by: set[str]
) -> None:
    failed = failing(mistaken(golden_pipeline, RECORDING, "edit_one"))
    assert caught_by <= failed
    assert bool(caught_by) == bool(failed)
