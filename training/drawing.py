"""Images from an exported checkpoint, for scores and sample sheets: the server's own path."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from model.config_file import load_config
from model.generation_config import load_generation_config
from model.kv_cache import build_step_groups, prefill
from model.loading.build import load_model
from model.loading.options import LoadOptions
from model.resolution import Size
from model.sequence import build_guidance_rows
from model.template import Prompt, Template
from model.tokenizer import Tokenizer
from model.transformer import HunyuanImage
from model.vae import to_uint8
from schedulers.sigmas import shifted_sigmas, timesteps_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How to sample one image."""

    seed: int = 0
    num_steps: int = 20
    guidance: float = 5.0
    negative: str | None = None
    flow_shift: float | None = None


# Draws the image of a prompt at a size.
Draw = Callable[[str, Size, Sampling], npt.NDArray[np.uint8]]


class Painter:
    """One loaded checkpoint."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.config = load_config(folder)
        self.transformer: HunyuanImage = load_model(folder, LoadOptions(dtype=dtype))
        self._generation = load_generation_config(folder)
        self._tokenizer = Tokenizer.from_folder(folder)
        self._template = Template(
            self._tokenizer, self._generation.template, self.config.image_base_size
        )

    @torch.inference_mode()
    def draw(self, prompt: str, size: Size, sampling: Sampling) -> npt.NDArray[np.uint8]:
        """Return an image. Shapes: -> rgb_yx3."""
        pair = build_guidance_rows(
            self._template, self._tokenizer, Prompt(text=prompt),
            None if sampling.negative is None else Prompt(text=sampling.negative),
            size, self.config,
        )  # fmt: skip
        rows = pair if sampling.guidance > 1 else pair[:1]
        grid = (rows[0].grid_height, rows[0].grid_width)
        groups = build_step_groups(self.transformer, rows)
        shift = sampling.flow_shift or self._generation.flow_shift
        sigmas = shifted_sigmas(sampling.num_steps, shift)
        generator = torch.Generator().manual_seed(sampling.seed)
        shape = (1, self.config.vae.latent_channels, *grid)
        latent_BCYX = torch.randn(shape, generator=generator)
        for step, timestep in enumerate(timesteps_of(sigmas)):
            timestep_B = timestep.expand(len(rows))
            x_BSD = self.transformer.embed_step(latent_BCYX, timestep_B[:1])
            x_BSD = self.transformer.run_layers(x_BSD.repeat(len(rows), 1, 1), groups)
            velocity_BCYX = self.transformer.predict_velocity(x_BSD, timestep_B, grid)
            guided = velocity_BCYX[:1]
            if len(rows) == 2:
                other = velocity_BCYX[1:]
                guided = other + sampling.guidance * (guided - other)
            latent_BCYX = latent_BCYX + (sigmas[step + 1] - sigmas[step]) * guided
        pixels: npt.NDArray[np.uint8] = to_uint8(self.transformer.vae.decode(latent_BCYX))[
            0
        ].numpy()
        return pixels

    @torch.inference_mode()
    def choose_ratio(self, prompt: str) -> int:
        """Return the most likely ratio index for a prompt, as size `auto` does."""
        ids = self._template.text_head(Prompt(text=prompt), "img_ratio")
        logits_V = self.transformer.text_logits(prefill(self.transformer, ids).hidden_1SD[:, -1])[0]
        ratios = [self._tokenizer.control_id(f"<img_ratio_{i}>") for i in range(33)]
        return int(logits_V[ratios].argmax())
