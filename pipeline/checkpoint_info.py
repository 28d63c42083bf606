"""Checkpoint information for admission, read from its small files. No torch."""

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from model.config_file import load_config, read_json
from model.errors import TokenizerError
from model.generation_config import TemplateName, load_generation_config
from model.resolution import Size, list_offered_sizes
from pipeline.vocabulary import Vocabulary, read_vocabulary

# Control tokens, role names and the like around a prompt.
TEMPLATE_TOKENS = 64
MAX_BYTES_PER_CHARACTER = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointInfo:
    """What admission needs of one checkpoint: its sizes, template, limits and tokenizer."""

    sizes: tuple[Size, ...]
    template: TemplateName
    is_distilled: bool
    default_steps: int | None  # of a distilled checkpoint; None: the API's default
    own_steps: int  # of generation_config.json, as is the guidance
    own_guidance: float
    max_positions: int
    pixels_per_token: int
    tokenizer: Tokenizer
    vocabulary: Vocabulary | None  # None: it draws anything

    def excess_tokens(self, text: str, size: Size | None) -> int:
        """Return by how many tokens a prompt is too long for an image of a size; 0 if it fits.

        None stands for whichever size needs the most.
        """
        areas = [s.width_px * s.height_px for s in ([size] if size else self.sizes)]
        image_tokens = max(areas) // self.pixels_per_token**2
        room = self.max_positions - image_tokens - TEMPLATE_TOKENS
        if len(text) * MAX_BYTES_PER_CHARACTER <= room:
            return 0  # whatever its tokens are
        return max(0, len(self.tokenizer.encode(text, add_special_tokens=False).ids) - room)


def read_checkpoint_info(folder: Path) -> CheckpointInfo:
    """Read config.json, generation_config.json, tokenizer.json and any vocabulary.json of `folder`.

    Raises:
        ModelError: a file is missing or not usable.
    """
    config, generation = load_config(folder), load_generation_config(folder)
    is_distilled = config.is_guidance_distilled or config.is_meanflow
    return CheckpointInfo(
        sizes=list_offered_sizes(config.image_base_size),
        template=generation.template,
        is_distilled=is_distilled,
        default_steps=generation.num_steps if is_distilled else None,
        own_steps=generation.num_steps,
        own_guidance=generation.guidance,
        max_positions=config.max_positions,
        pixels_per_token=config.pixels_per_token,
        tokenizer=_load_tokenizer(folder / "tokenizer.json"),
        vocabulary=read_vocabulary(folder),
    )


def _load_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer without its control tokens, as prompts are encoded."""
    description = read_json(path, TokenizerError)
    try:
        return Tokenizer.from_str(json.dumps({**description, "added_tokens": []}))
    except Exception as e:  # noqa: BLE001 -- the library raises nothing narrower
        raise TokenizerError(f"{path} cannot be read ({e}); download it again") from None
