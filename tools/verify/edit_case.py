"""An image case with input images: all that is recorded of them, then as any other case."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from model.image_input import EmbeddedImage, embed_image, sample_latent, tower_output
from model.kv_cache import PromptKVCache
from model.resolution import Size
from model.sequence import grid_positions
from model.template import Prompt
from model.vae import to_uint8
from pipeline.image_inputs import InputImages, load_input_images
from pipeline.input_image import aligned_size, resize_pixels
from tools.verify.checks import Check, compare_images, compare_values
from tools.verify.edit_groups import describe_image
from tools.verify.image_case import ImageCase
from tools.verify.sizes import parse_reference_size

_OF_IMAGE = re.compile(r"(\w+)_(\d)")
# Facts of the file; those of the image are compared.
_OF_FILE = {"file", "mode", "exif_orientation", "resample"}


class EditCase(ImageCase):
    """One recorded case with input images, run from the recorded noise of their latents."""

    @cached_property
    def _inputs(self) -> InputImages:
        files = [self._recording.folder / image["file"] for image in self._case["images"]]
        return load_input_images(
            self._pipeline, [file.read_bytes() for file in files], is_stretched=self._is_aligned
        )

    @property
    def _is_aligned(self) -> bool:
        return bool(self._case.get("align", False))

    @cached_property
    def _noises(self) -> list[Tensor]:
        device = self._pipeline.transformer.device
        return [
            self._recorded[f"vae_noise_{j}"].unsqueeze(0).to(device)
            for j in range(len(self._inputs.encoded))
        ]

    @cached_property
    def _images(self) -> Sequence[EmbeddedImage]:
        prompt = Prompt(
            text="", images=self._inputs.grids, system_prompt=self._case.get("system_prompt")
        )
        blocks = self._template.image_blocks(prompt)
        with torch.inference_mode():
            return [
                embed_image(self._pipeline.transformer, encoded, noise_1CYX, block, str(number))
                for number, (encoded, noise_1CYX, block) in enumerate(
                    zip(self._inputs.encoded, self._noises, blocks, strict=True)
                )
            ]

    @cached_property
    def _ratio_stage(self) -> tuple[Tensor, Tensor]:
        """Return the ids before the size that the model chooses, and its logits there."""
        ids = self._template.text_head(self._prompt(0), "img_ratio")
        transformer = self._pipeline.transformer
        with torch.inference_mode():
            prompt = PromptKVCache(transformer, self._images).get_or_compute(ids)
            return torch.tensor(ids), transformer.text_logits(prompt.hidden_1SD[:, -1:])[0, 0]

    @cached_property
    def _size(self) -> Size:
        if self._case["image_size"] != "auto":
            return parse_reference_size(self._case["image_size"], self._pipeline.sizes)
        first = self._pipeline.tokenizer.control_id("<img_ratio_0>")
        logits_Z = self._ratio_stage[1][first : first + len(self._pipeline.sizes)]
        return self._pipeline.sizes[int(logits_Z.argmax())]

    @cached_property
    def _final_wh(self) -> tuple[int, int]:
        if not self._is_aligned:
            return self._size.width_px, self._size.height_px
        upright = [image.upright_wh for image in self._inputs.prepared]
        base = self._pipeline.transformer.config.image_base_size
        return aligned_size(upright, self._size, self._pipeline.sizes, base)

    # --- what we compute ---

    @torch.inference_mode()
    def _ours(self, name: str, recorded: Tensor) -> Tensor | None:
        if (match := _OF_IMAGE.fullmatch(name)) and int(match[2]) < len(self._images):
            ours = self._of_image(match[1], int(match[2]))
            if ours is not None:
                return ours
        match name:
            case "ratio_ids":
                return self._ratio_stage[0]
            case "ratio_logits":
                return self._ratio_stage[1]
            case "cond_timestep_token":
                return self._images[0].timestep_1D[0]
            case "cond_timestep_index":
                starts = [image.block.start - 1 for image in self._images]
                return torch.tensor([starts] * recorded.shape[0])
            case "cond_vae_image_mask" | "cond_vit_image_mask":
                return self._block_mask(name == "cond_vae_image_mask", recorded)
            case "rope_pos":
                rows, length = self._rows[: recorded.shape[0]], recorded.shape[1]
                return torch.stack([grid_positions(row, length) for row in rows])
        return super()._ours(name, recorded)

    def _block_mask(self, is_latent: bool, recorded: Tensor) -> Tensor:
        mask_BS = torch.zeros(recorded.shape, dtype=torch.bool)
        for image in self._images:
            block = image.block
            if is_latent:
                mask_BS[:, block.start : block.separator] = True
            else:
                mask_BS[:, block.separator + 1 : block.stop] = True
        return mask_BS

    def _of_image(self, name: str, number: int) -> Tensor | None:
        """Return our value of something recorded about one input image, computed when asked for."""
        transformer, image = self._pipeline.transformer, self._inputs.prepared[number]
        encoded, grid = self._inputs.encoded[number], image.grid
        num_patches = grid.patches_down * grid.patches_across
        values: dict[str, Callable[[], Tensor]] = {
            "vae_input_u8": lambda: torch.tensor(image.rgb_yx3),
            "vit_pixel_values": lambda: image.patches_SZ,
            "vit_mask": lambda: torch.arange(grid.num_slots) < num_patches,
            "vit_spatial_shape": lambda: torch.tensor([grid.patches_down, grid.patches_across]),
            "vae_mean": lambda: encoded.mean_1CYX[0],
            "vae_logvar": lambda: encoded.logvar_1CYX[0],
            "cond_latents": lambda: sample_latent(transformer, encoded, self._noises[number])[0],
            "vit_out": lambda: tower_output(transformer, image.patches_SZ.unsqueeze(0), grid)[0],
            "cond_vae_tokens": lambda: self._images[number].latent_1SD[0],
            "vit_tokens": lambda: encoded.vision_1SD[0],
        }
        return values[name]() if name in values else None

    # --- values and images ---

    def _value_checks(self) -> Iterator[Check]:
        yield from super()._value_checks()
        blocks = [image.block for image in self._images]
        row = self._rows[0]
        drawn = [row.image_start, row.image_stop]
        joint = [[block.start, block.stop] for block in blocks]
        ours: dict[str, object] = {
            "gen_image_slice": drawn,
            "vae_image_slices": [[block.start, block.separator] for block in blocks],
            "vit_image_slices": [[block.separator + 1, block.stop] for block in blocks],
            "joint_image_slices": joint,
            "full_attention_slices": [*joint, drawn],
            "size_wh_bucket": [self._size.width_px, self._size.height_px],
            "size_wh": list(self._final_wh),
        }
        for name in ours.keys() & self._case.keys():
            yield compare_values(self._name, name, ours[name], self._case[name])
        yield from self._image_facts()

    def _image_facts(self) -> Iterator[Check]:
        config = self._pipeline.transformer.config
        for recorded, image in zip(self._case["images"], self._inputs.prepared, strict=True):
            facts = describe_image(
                *image.upright_wh,
                self._pipeline.sizes,
                patch_size=config.patch_size,
                max_patches=config.max_patches,
                is_stretched=self._is_aligned,
            ) | {"vae_tokens_hw": [image.grid.height, image.grid.width]}
            truth = {key: value for key, value in recorded.items() if key not in _OF_FILE}
            yield compare_values(self._name, recorded["file"], facts, truth)

    def _image_check(self, file_name: str, index: int) -> Check:
        pixels_yx3 = to_uint8(self._rgb)[0]
        if not file_name.endswith(".bucket.png") and self._is_aligned:
            pixels_yx3 = torch.tensor(resize_pixels(pixels_yx3.cpu().numpy(), *self._final_wh))
        recorded_yx3 = self._recording.read_image(file_name)
        return compare_images(self._name, file_name, pixels_yx3, recorded_yx3)
