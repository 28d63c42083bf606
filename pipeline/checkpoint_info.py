"""Checkpoint information for admission, read from its small files. No torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from model.config_file import load_config, read_json
from model.errors import TokenizerError
from model.generation_config import TemplateName, load_generation_config
from model.image_block import SEPARATOR, count_block_tokens
from model.resolution import Size, list_offered_sizes, list_sizes, nearest_size
from pipeline.input_image import MAX_IMAGES
from pipeline.vocabulary import Vocabulary, read_vocabulary

# Control tokens, role names and the like around a prompt.
TEMPLATE_TOKENS = 64
MAX_BYTES_PER_CHARACTER = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointInfo:
    """What admission needs of one checkpoint: its sizes, template, limits and tokenizer.

    `sizes` are those of generated images, `input_sizes` those of input images.
    """

    sizes: tuple[Size, ...]
    input_sizes: tuple[Size, ...]
    max_input_images: int  # 0: it takes none
    num_vision_slots: int
    template: TemplateName
    is_distilled: bool
    default_steps: int | None  # of a distilled checkpoint; None: the API's default
    own_steps: int  # of generation_config.json, as is the guidance
    own_guidance: float
    max_positions: int
    pixels_per_token: int
    tokenizer: Tokenizer
    vocabulary: Vocabulary | None  # None: it draws anything

    def excess_tokens(
        self, text: str, size: Size | None, images_wh: Sequence[tuple[int, int]] = ()
    ) -> int:
        """Return by how many tokens a prompt is too long for an image of a size; 0 if it fits.

        None stands for whichever size needs the most. `images_wh` are the widths and heights of its
        input images.
        """
        image_tokens = max(map(self._image_tokens, [size] if size else self.sizes))
        image_tokens += sum(self.input_tokens(*sides) for sides in images_wh)
        room = self.max_positions - image_tokens - TEMPLATE_TOKENS
        if len(text) * MAX_BYTES_PER_CHARACTER <= room:
            return 0  # whatever its tokens are
        return max(0, len(self.tokenizer.encode(text, add_special_tokens=False).ids) - room)

    def input_tokens(self, width_px: int, height_px: int) -> int:
        """Return the tokens of an input image of these sides, `<boi>` to `<eoi>`."""
        size = nearest_size(self.input_sizes, height_px, width_px)
        return count_block_tokens(self._image_tokens(size), self.num_vision_slots)

    def _image_tokens(self, size: Size) -> int:
        return size.width_px * size.height_px // self.pixels_per_token**2


def read_checkpoint_info(folder: Path) -> CheckpointInfo:
    """Read config.json, generation_config.json, tokenizer.json and any vocabulary.json of `folder`.

    Raises:
        ModelError: a file is missing or not usable.
    """
    config, generation = load_config(folder), load_generation_config(folder)
    is_distilled = config.is_guidance_distilled or config.is_meanflow
    description = read_json(folder / "tokenizer.json", TokenizerError)
    controls = {token.get("content") for token in description.get("added_tokens", ())}
    num_ratios = next(i for i in count() if f"<img_ratio_{i}>" not in controls)
    # Base checkpoints have the parts that read images, and were not trained to edit.
    takes_images = generation.template == "instruct" and SEPARATOR in controls
    return CheckpointInfo(
        sizes=list_offered_sizes(config.image_base_size),
        input_sizes=list_sizes(config.image_base_size, num_ratios),
        max_input_images=MAX_IMAGES if takes_images else 0,
        num_vision_slots=config.max_patches,
        template=generation.template,
        is_distilled=is_distilled,
        default_steps=generation.num_steps if is_distilled else None,
        own_steps=generation.num_steps,
        own_guidance=generation.guidance,
        max_positions=config.max_positions,
        pixels_per_token=config.pixels_per_token,
        tokenizer=_load_tokenizer(description, folder / "tokenizer.json"),
        vocabulary=read_vocabulary(folder),
    )


def _load_tokenizer(description: dict[str, Any], path: Path) -> Tokenizer:
    """Return the tokenizer without its control tokens, as prompts are encoded."""
    try:
        return Tokenizer.from_str(json.dumps({**description, "added_tokens": []}))
    except Exception as e:  # noqa: BLE001 -- the library raises nothing narrower
        raise TokenizerError(f"{path} cannot be read ({e}); download it again") from None
