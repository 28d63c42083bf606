"""Input images of the transformer: encoded once, then embedded as tokens of a prompt.

An image enters twice: the latent of the VAE, as image tokens at timestep 0, and what the vision
tower sees, one token for each of its slots. Both stand in one block (`model/template.py`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.errors import ModelError
from model.image_block import ImageBlock, ImageGrid
from model.transformer import HunyuanImage


class ImageInputsOffError(ModelError):
    """The parts of the checkpoint that read images are not loaded."""

    code = "imageInputsOff"

    def __init__(self) -> None:
        super().__init__(
            "this worker takes no input images: worker.image_inputs is false, so the vision tower "
            "and the VAE's encoder are not loaded; set it to true and start again"
        )


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """What an input image is to every seed: its latent's distribution and its vision tokens.

    Shapes: mean_1CYX, logvar_1CYX float32, vision_1SD.
    """

    mean_1CYX: Tensor
    logvar_1CYX: Tensor
    vision_1SD: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddedImage:
    """An input image as tokens, at its place in a prompt.

    Equal identities mean equal tokens: the same image with the same noise.

    Shapes: timestep_1D, latent_1SD, vision_1SD.
    """

    identity: str
    block: ImageBlock
    timestep_1D: Tensor
    latent_1SD: Tensor
    vision_1SD: Tensor

    def place(self, x_1SD: Tensor, start: int) -> None:
        """Write the tokens into the embeddings of a prompt from position `start` on, if there."""
        block, stop = self.block, start + x_1SD.shape[1]
        if start < block.start <= stop:
            x_1SD[:, block.start - 1 - start] = self.timestep_1D
        if start <= block.start < stop:
            x_1SD[:, block.start - start : block.separator - start] = self.latent_1SD
            x_1SD[:, block.separator + 1 - start : block.stop - start] = self.vision_1SD


def tower_output(transformer: HunyuanImage, patches_1SZ: Tensor, grid: ImageGrid) -> Tensor:
    """Return what the vision tower makes of an image's patches, a row for every slot.

    Patches that only fill up are masked as keys; their own rows are used like any other.

    Shapes: patches_1SZ -> hidden_1SZ.

    Raises:
        ImageInputsOffError: the tower is not loaded.
    """
    if transformer.vision_model is None:
        raise ImageInputsOffError
    device, num_patches = transformer.device, grid.patches_down * grid.patches_across
    mask_1S = torch.zeros(1, grid.num_slots, dtype=torch.int32, device=device)
    mask_1S[:, :num_patches] = 1
    hidden_1SZ: Tensor = transformer.vision_model(
        pixel_values=patches_1SZ.to(device, transformer.dtype),
        pixel_attention_mask=mask_1S,
        spatial_shapes=torch.tensor([[grid.patches_down, grid.patches_across]], device=device),
    ).last_hidden_state
    return hidden_1SZ


def encode_image(
    transformer: HunyuanImage, rgb_13yx: Tensor, patches_1SZ: Tensor, grid: ImageGrid
) -> EncodedImage:
    """Return an input image encoded: what does not depend on a seed.

    Shapes: rgb_13yx in [-1, 1], patches_1SZ, both float32.

    Raises:
        ImageInputsOffError: the encoder or the tower is not loaded.
    """
    hidden_1SZ = tower_output(transformer, patches_1SZ, grid)
    mean_1CYX, logvar_1CYX = transformer.vae.encode(rgb_13yx.to(transformer.device))
    return EncodedImage(mean_1CYX, logvar_1CYX, transformer.vision_aligner(hidden_1SZ))


def sample_latent(transformer: HunyuanImage, encoded: EncodedImage, noise_1CYX: Tensor) -> Tensor:
    """Return the latent of an input image: a sample of the encoder's distribution, scaled.

    Source: `vae_encode` of both releases, which sample too. Shapes: -> latent_1CYX float32.
    """
    deviation_1CYX = (encoded.logvar_1CYX / 2).exp()
    return transformer.vae.scale(encoded.mean_1CYX + deviation_1CYX * noise_1CYX)


def embed_image(
    transformer: HunyuanImage,
    encoded: EncodedImage,
    noise_1CYX: Tensor,
    block: ImageBlock,
    identity: str,
) -> EmbeddedImage:
    """Return an input image as the tokens of its block, its latent sampled with the noise."""
    latent_1CYX = sample_latent(transformer, encoded, noise_1CYX)
    clean_1 = torch.zeros(1, device=transformer.device)  # an input image's timestep
    return EmbeddedImage(
        identity=identity,
        block=block,
        timestep_1D=transformer.timestep_emb(clean_1),
        latent_1SD=transformer.patch_embed(
            latent_1CYX.to(transformer.dtype), transformer.time_embed(clean_1)
        ),
        vision_1SD=encoded.vision_1SD,
    )
