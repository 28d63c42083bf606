"""Previews: the map is least squares, its file is strict, and previews change nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.errors import ConfigError
from pipeline.generate import generate
from pipeline.load import Pipeline
from pipeline.preview import (
    FILE_NAME,
    PreviewMap,
    fit_preview_map,
    load_preview_map,
    patch_side,
    save_preview_map,
)
from pipeline.request import ImageDone, ImageRequest, StepDone

CHANNELS, PATCH = 4, 2


def new_map(fingerprint: str = "f", channels: int = CHANNELS) -> PreviewMap:
    generator = torch.Generator().manual_seed(1)
    return PreviewMap(
        fingerprint=fingerprint,
        patch=PATCH,
        weight_PC=torch.randn(3 * PATCH**2, channels, generator=generator) / 20,
        bias_P=torch.full((3 * PATCH**2,), 0.5),
        r2=1.0,
        n=1,
    )


def test_a_linear_decoder_is_found_again() -> None:
    truth = new_map()
    latents = [torch.randn(1, CHANNELS, 6, 5) for _ in range(4)]
    images = [torch.from_numpy(truth.render(latent))[None] for latent in latents]
    found = fit_preview_map(latents, images, PATCH, "f")
    assert torch.allclose(found.weight_PC, truth.weight_PC, atol=2e-3)
    assert found.r2 > 0.999
    assert found.n == 4 * 30


def test_each_cell_becomes_a_patch_in_its_place() -> None:
    latent = torch.zeros(1, CHANNELS, 2, 3)
    latent[0, 0, 1, 2] = 1.0
    weight = torch.zeros(12, CHANNELS)
    weight[:, 0] = 1.0
    shown = replace(new_map(), weight_PC=weight, bias_P=torch.zeros(12)).render(latent)
    assert shown.shape == (4, 6, 3)
    assert (shown[2:, 4:] == 255).all()
    assert shown.sum() == 255 * 12


def test_a_map_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = new_map()
    assert save_preview_map(tmp_path, written) == tmp_path / FILE_NAME
    read = load_preview_map(tmp_path, "f", CHANNELS)
    assert read is not None
    assert torch.allclose(read.weight_PC, written.weight_PC, atol=1e-5)
    assert (read.r2, read.n, read.patch) == (1.0, 1, PATCH)


def test_a_checkpoint_without_a_map_has_none(tmp_path: Path) -> None:
    assert load_preview_map(tmp_path, "f", CHANNELS) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not usable"),
        ("[]", "is not usable"),
        (json.dumps({"fingerprint": "f"}), "is not usable"),
        ("other", "fitted for other weights"),
        ("channels", "maps (12, 5)"),
    ],
)
def test_a_map_that_does_not_fit_is_refused_with_what_to_do(
    tmp_path: Path, content: str, message: str
) -> None:
    if content == "other":
        save_preview_map(tmp_path, new_map("g"))
    elif content == "channels":
        save_preview_map(tmp_path, new_map(channels=5))
    else:
        (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(ConfigError, match="hyimage calibrate") as refused:
        load_preview_map(tmp_path, "f", CHANNELS)
    assert message in str(refused.value)


def test_a_preview_has_eighth_of_the_images_side_and_at_least_a_pixel_for_each_cell() -> None:
    assert [patch_side(stride) for stride in (4, 16, 64)] == [1, 2, 8]


def test_the_last_preview_is_the_linear_image_and_pixels_do_not_depend_on_previews(
    tiny_pipeline: Pipeline, image_request: ImageRequest
) -> None:
    channels = tiny_pipeline.transformer.config.vae.latent_channels
    watched = replace(tiny_pipeline, preview_map=new_map(channels=channels))
    with_previews = list(generate(watched, image_request, lambda: True))
    without = list(generate(tiny_pipeline, image_request, lambda: True))
    previews = [e.preview_yx3 for e in with_previews if isinstance(e, StepDone)]
    assert all(preview is not None for preview in previews)
    assert all(e.preview_yx3 is None for e in without if isinstance(e, StepDone))
    (ours,) = (e.pixels_yx3 for e in with_previews if isinstance(e, ImageDone))
    (theirs,) = (e.pixels_yx3 for e in without if isinstance(e, ImageDone))
    assert (ours == theirs).all()
