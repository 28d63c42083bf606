"""Input images of a request: prepared and encoded once, embedded for the seed of each image."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.image_block import ImageBlock, ImageGrid
from model.image_input import EmbeddedImage, EncodedImage, embed_image, encode_image
from model.resolution import nearest_size
from model.vision import cut_patches, patch_grid
from pipeline.input_image import (
    MAX_IMAGES,
    InputImageError,
    fit_image,
    plan_fit,
    read_input_image,
)
from pipeline.load import Pipeline
from pipeline.noise import posterior_noise, to_device


@dataclass(frozen=True, slots=True, eq=False)
class PreparedImage:
    """The pixels of an input image as the VAE and the vision tower get them.

    `identity` names the bytes and how they were fitted.

    Shapes: rgb_yx3 uint8, patches_SZ float32.
    """

    identity: str
    upright_wh: tuple[int, int]
    grid: ImageGrid
    rgb_yx3: npt.NDArray[np.uint8] = field(repr=False)
    patches_SZ: Tensor = field(repr=False)

    def vae_input(self) -> Tensor:
        """Return the encoder's input. Shapes: -> rgb_13yx float32 in [-1, 1]."""
        rgb_yx3 = torch.tensor(self.rgb_yx3).float() / 255
        return ((rgb_yx3 - 0.5) / 0.5).movedim(-1, 0).unsqueeze(0)


@dataclass(frozen=True, slots=True, eq=False)
class InputImages:
    """The input images of one request, in its order."""

    prepared: tuple[PreparedImage, ...] = ()
    encoded: tuple[EncodedImage, ...] = ()

    @property
    def grids(self) -> tuple[ImageGrid, ...]:
        return tuple(image.grid for image in self.prepared)

    @torch.inference_mode()
    def embed(
        self, pipeline: Pipeline, blocks: Sequence[ImageBlock], seed: int
    ) -> tuple[EmbeddedImage, ...]:
        """Return the images' tokens for one seed: their latents are samples from its stream."""
        shapes = [tuple(encoded.mean_1CYX.shape) for encoded in self.encoded]
        noises = posterior_noise(seed, shapes)
        return tuple(
            embed_image(
                pipeline.transformer,
                encoded,
                to_device(noise_1CYX, pipeline.transformer.device),
                block,
                f"{image.identity}, seed {seed}, {number}",
            )
            for number, (image, encoded, noise_1CYX, block) in enumerate(
                zip(self.prepared, self.encoded, noises, blocks, strict=True)
            )
        )


def load_input_images(
    pipeline: Pipeline, files: Sequence[bytes], *, is_stretched: bool
) -> InputImages:
    """Return the input images of a request, encoded.

    Raises:
        InputImageError: there are too many, or one cannot be used.
        ImageInputsOffError: the parts that encode them are not loaded.
    """
    if len(files) > MAX_IMAGES:
        raise InputImageError(f"{len(files)} input images; at most {MAX_IMAGES} are taken")
    prepared = tuple(
        prepare_image(pipeline, data, f"input image {number}", is_stretched=is_stretched)
        for number, data in enumerate(files, start=1)
    )
    with torch.inference_mode():
        encoded = tuple(
            encode_image(
                pipeline.transformer, image.vae_input(), image.patches_SZ.unsqueeze(0), image.grid
            )
            for image in prepared
        )
    return InputImages(prepared, encoded)


def prepare_image(
    pipeline: Pipeline, data: bytes, name: str, *, is_stretched: bool
) -> PreparedImage:
    """Return an input image's pixels for the VAE and the vision tower.

    The tower gets the upright image itself, also what the crop for the VAE cuts off.

    Raises:
        InputImageError: the image cannot be used; the message has the name.
    """
    image = read_input_image(data, name)
    config = pipeline.transformer.config
    size = nearest_size(pipeline.sizes, image.height, image.width)
    fit = plan_fit(image.width, image.height, size, is_stretched=is_stretched)
    down, across = patch_grid(image.width, image.height, config.patch_size, config.max_patches)
    stride = config.pixels_per_token
    upright_yx3 = torch.tensor(np.asarray(image))
    return PreparedImage(
        identity=f"{hashlib.sha256(data).hexdigest()}{' stretched' if is_stretched else ''}",
        upright_wh=image.size,
        grid=ImageGrid(
            ratio_index=size.index,
            height=size.height_px // stride,
            width=size.width_px // stride,
            patches_down=down,
            patches_across=across,
            num_slots=config.max_patches,
        ),
        rgb_yx3=fit_image(image, fit),
        patches_SZ=cut_patches(upright_yx3, (down, across), config.patch_size, config.max_patches),
    )
